"""Converts a JAX function to ONNX, so that a browser, a phone or a server without JAX can run it.

The function is traced to a jaxpr, and each of its operations becomes one or a few ONNX nodes. Only the operations of
this package's networks are known. Operations on constants are computed here.
"""

import string
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pneumojax.errors import UserError

OPSET = 18
_DTYPES = {
    "uint8": TensorProto.UINT8,
    "int32": TensorProto.INT32,
    "float32": TensorProto.FLOAT,
    "bool": TensorProto.BOOL,
}

# Operations that are one ONNX node with the same operands.
_SAME = {
    "add": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "div": "Div",
    "max": "Max",
    "min": "Min",
    "exp": "Exp",
    "log": "Log",
    "neg": "Neg",
    "tanh": "Tanh",
    "sqrt": "Sqrt",
    "ge": "GreaterOrEqual",
    "gt": "Greater",
    "stop_gradient": "Identity",
}


def convert(
    function: Callable[..., tuple[jax.Array, ...]],
    image_px: int,
    outputs: Sequence[str],
    metadata: dict[str, str],
) -> onnx.ModelProto:
    """Converts a function of a batch of images.

    Args:
      function: images [B, image_px, image_px] uint8 -> arrays [B, ...] float32.
      image_px: height and width of the images.
      outputs: names of the results.
      metadata: is stored in the model.

    Returns:
      The model. Its input is named images; B is any number.

    Raises:
      UserError: the function has an operation that is not known here.
    """
    (batch,) = jax.export.symbolic_shape("batch")
    jaxpr = jax.make_jaxpr(function)(jax.ShapeDtypeStruct((batch, image_px, image_px), "uint8"))
    graph = _Graph()
    results = graph.add_jaxpr(jaxpr.jaxpr, [np.asarray(const) for const in jaxpr.consts], ["images"])
    for result, name in zip(results, outputs, strict=True):
        graph.add_node("Identity", [graph.name(result)], name)
    image = helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", image_px, image_px])
    ends = [
        helper.make_tensor_value_info(name, _DTYPES[str(aval.dtype)], ["batch", *aval.shape[1:]])
        for name, aval in zip(outputs, jaxpr.out_avals, strict=True)
    ]
    model = helper.make_model(
        helper.make_graph(graph.nodes, "pneumojax", [image], ends, graph.constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=10,  # That of ONNX 1.17, which runtimes of the last years read.
        producer_name="pneumojax",
    )
    helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    return model


class _Graph:
    """The nodes and constants of a model that is being made.

    A value is the name of a tensor of the model, or a numpy array that is known already.
    """

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.count = 0

    def name(self, value: str | np.ndarray) -> str:
        """Returns the name of a value. A numpy array becomes a constant of the model."""
        if isinstance(value, str):
            return value
        self.count += 1
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), f"constant{self.count}"))
        return self.constants[-1].name

    def add_node(
        self, kind: str, operands: Sequence[str | np.ndarray], result: str | None = None, **attributes: Any
    ) -> str:
        """Adds a node with one result, and returns the result's name."""
        self.count += 1
        result = result or f"{kind.lower()}{self.count}"
        self.nodes.append(helper.make_node(kind, [self.name(one) for one in operands], [result], **attributes))
        return result

    def add_jaxpr(self, jaxpr: Any, consts: list[np.ndarray], arguments: list) -> list[str | np.ndarray]:
        """Adds the operations of a jaxpr, and returns its results."""
        values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))

        def look_up(variable: Any) -> str | np.ndarray:
            return np.asarray(variable.val) if hasattr(variable, "val") else values[variable]

        for equation in jaxpr.eqns:
            operands = [look_up(variable) for variable in equation.invars]
            inner = equation.params.get("jaxpr") or equation.params.get("call_jaxpr")
            if inner is not None:
                closed = [np.asarray(const) for const in getattr(inner, "consts", ())]
                results = self.add_jaxpr(getattr(inner, "jaxpr", inner), closed, operands)
            elif not any(isinstance(one, str) for one in operands) and _is_static(equation):
                computed = equation.primitive.bind(*operands, **equation.params)
                results = [np.asarray(one) for one in (computed if equation.primitive.multiple_results else [computed])]
            else:
                results = [self.add_operation(equation, operands)]
            values |= zip(equation.outvars, results, strict=True)
        return [look_up(variable) for variable in jaxpr.outvars]

    def add_operation(self, equation: Any, operands: list) -> str:
        """Adds the nodes of one operation, and returns the name of its result."""
        kind, params = equation.primitive.name, equation.params
        if kind in _SAME:
            return self.add_node(_SAME[kind], operands)
        special = getattr(self, f"_add_{kind}", None)
        if special is None:
            raise UserError(f"the network has the operation {kind}, which has no translation to ONNX. Use --noonnx.")
        return special(equation, operands, params)

    def _add_rsqrt(self, equation: Any, operands: list, params: dict) -> str:
        return self.add_node("Reciprocal", [self.add_node("Sqrt", operands)])

    def _add_integer_pow(self, equation: Any, operands: list, params: dict) -> str:
        return self.add_node("Pow", [*operands, np.array(params["y"], np.float32)])

    def _add_square(self, equation: Any, operands: list, params: dict) -> str:
        return self.add_node("Mul", [*operands, *operands])

    def _add_convert_element_type(self, equation: Any, operands: list, params: dict) -> str:
        return self.add_node("Cast", operands, to=_DTYPES[str(np.dtype(params["new_dtype"]))])

    def _add_select_n(self, equation: Any, operands: list, params: dict) -> str:
        condition, if_false, if_true = operands
        return self.add_node("Where", [condition, if_true, if_false])

    def _add_reduce_sum(self, equation: Any, operands: list, params: dict) -> str:
        axes = np.array(params["axes"], np.int64)  # There are none in a mean over no axis.
        return self.add_node("ReduceSum", [*operands, axes], keepdims=0, noop_with_empty_axes=1)

    def _add_reduce_max(self, equation: Any, operands: list, params: dict) -> str:
        return self.add_node("ReduceMax", [*operands, np.array(params["axes"], np.int64)], keepdims=0)

    def _add_transpose(self, equation: Any, operands: list, params: dict) -> str:
        return self.add_node("Transpose", operands, perm=list(params["permutation"]))

    def _add_concatenate(self, equation: Any, operands: list, params: dict) -> str:
        return self.add_node("Concat", operands, axis=params["dimension"])

    def _add_reshape(self, equation: Any, operands: list, params: dict) -> str:
        return self.add_node("Reshape", [operands[0], _find_sizes(equation.outvars[0].aval.shape)])

    _add_squeeze = _add_reshape

    def _add_slice(self, equation: Any, operands: list, params: dict) -> str:
        starts, shape = params["start_indices"], equation.outvars[0].aval.shape
        axes = [i for i, size in enumerate(shape) if isinstance(size, int)]
        steps = params["strides"] or [1] * len(shape)
        ends = [params["limit_indices"][i] for i in axes]
        bounds = [np.array(one) for one in ([starts[i] for i in axes], ends, axes, [steps[i] for i in axes])]
        return self.add_node("Slice", [operands[0], *bounds])

    def _add_broadcast_in_dim(self, equation: Any, operands: list, params: dict) -> str:
        shape, operand = equation.outvars[0].aval.shape, equation.invars[0].aval
        kept = dict(zip(params["broadcast_dimensions"], operand.shape, strict=True))
        spread = self.add_node("Reshape", [operands[0], _find_sizes([kept.get(i, 1) for i in range(len(shape))])])
        if all(kept.get(i, 1) == size for i, size in enumerate(shape)):
            return spread
        batch = self.add_node("Shape", ["images"], start=0, end=1)
        sizes = [np.array([size]) if isinstance(size, int) else batch for size in shape]
        return self.add_node("Expand", [spread, self.add_node("Concat", sizes, axis=0)])

    def _add_dot_general(self, equation: Any, operands: list, params: dict) -> str:
        (contracted, batched), letters = params["dimension_numbers"], iter(string.ascii_lowercase)
        first = [next(letters) for _ in equation.invars[0].aval.shape]
        second = [next(letters) for _ in equation.invars[1].aval.shape]
        for pairs in (contracted, batched):
            for i, j in zip(*pairs, strict=True):
                second[j] = first[i]
        shared = [first[i] for i in batched[0]]
        left = [one for i, one in enumerate(first) if i not in {*contracted[0], *batched[0]}]
        right = [one for j, one in enumerate(second) if j not in {*contracted[1], *batched[1]}]
        text = f"{''.join(first)},{''.join(second)}->{''.join(shared + left + right)}"
        return self.add_node("Einsum", operands, equation=text)

    def _add_conv_general_dilated(self, equation: Any, operands: list, params: dict) -> str:
        numbers = params["dimension_numbers"]
        image, kernel, output = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
        plain = params["feature_group_count"] == params["batch_group_count"] == 1 and set(params["lhs_dilation"]) == {1}
        if not plain or isinstance(operands[1], str):
            raise UserError("the network has a convolution that has no translation to ONNX. Use --noonnx.")
        convolved = self.add_node(
            "Conv",
            [self.add_node("Transpose", [operands[0]], perm=list(image)), np.transpose(operands[1], kernel)],
            strides=list(params["window_strides"]),
            pads=[before for before, _ in params["padding"]] + [after for _, after in params["padding"]],
            dilations=list(params["rhs_dilation"]),
        )
        return self.add_node("Transpose", [convolved], perm=[output.index(i) for i in range(len(output))])

    def _add_reduce_window_max(self, equation: Any, operands: list, params: dict) -> str:
        # Of images [B, H, W, C]; ONNX has the channels first.
        window, strides, padding = (params[name][1:3] for name in ("window_dimensions", "window_strides", "padding"))
        pooled = self.add_node(
            "MaxPool",
            [self.add_node("Transpose", operands, perm=[0, 3, 1, 2])],
            kernel_shape=list(window),
            strides=list(strides),
            pads=[before for before, _ in padding] + [after for _, after in padding],
        )
        return self.add_node("Transpose", [pooled], perm=[0, 2, 3, 1])


def _is_static(equation: Any) -> bool:
    """Returns whether the shapes of all results are known numbers."""
    return all(isinstance(size, int) for result in equation.outvars for size in result.aval.shape)


def _find_sizes(shape: Sequence[Any]) -> np.ndarray:
    """Returns a shape for ONNX, with -1 for the number of images."""
    return np.array([size if isinstance(size, int) else -1 for size in shape], np.int64)
