"""Fixtures of the fault tests: a finished run, and a summary line for each command."""

import pytest
from commands import COMMANDS, finish, make_folder, start


@pytest.fixture(scope="session")
def trained(processes, data_dir, tmp_path_factory):
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("trained") / "folder"
    make_folder(COMMANDS["train"], folder, data_dir, folder)
    process = start(processes, COMMANDS["train"], folder)
    finish(process)
    assert process.exitcode == 0
    return folder / "run"


def pytest_terminal_summary(terminalreporter):
    lines = [
        value
        for reports in terminalreporter.stats.values()
        for report in reports
        for name, value in getattr(report, "user_properties", ())
        if name == "survived"
    ]
    for line in dict.fromkeys(lines):
        terminalreporter.write_line(line)
