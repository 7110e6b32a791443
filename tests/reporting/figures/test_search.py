"""Tests of the figure of a search."""

from pictures import is_picture

from pneumojax.reporting.figures import search, style


def test_a_search_with_trials_of_every_state(tmp_path):
    values = [{"learning_rate": 10.0**-i, "model": model} for i, model in enumerate(("mlp", "cnn", "cnn", "mlp"))]
    states, aurocs = ("complete", "pruned", "diverged", "diverged"), (0.9, 0.8, 0.7, None)
    rows = [
        {"name": f"trial_{i}", "state": state, "auroc": auroc, "values": of_trial}
        for i, (state, auroc, of_trial) in enumerate(zip(states, aurocs, values, strict=True))
    ]
    scales = {"learning_rate": "log", "model": "choices"}
    search.save_search(tmp_path / "search.png", rows, scales, {"model": 0.6, "learning_rate": 0.4})
    assert is_picture(tmp_path / "search.png", style.BLUE)
    assert is_picture(tmp_path / "search.png", style.ORANGE)
    search.save_search(tmp_path / "none.png", rows[3:], scales, None)
    assert is_picture(tmp_path / "none.png")
