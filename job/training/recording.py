"""What a function did with tensors, as a list of operations that can be done again without the function.

Below modules and autograd everything is calls of ATen, and for tensors of the same shapes always the same ones. Called
one after the other they compute the same bits and draw the same random numbers, without what led to them.
"""

from collections.abc import Callable, Iterable, Sequence
from operator import getitem
from types import BuiltinFunctionType, MethodDescriptorType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_aggregate
from torch.utils._python_dispatch import TorchDispatchMode

_UNKNOWABLE = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
_SAME = {"_unsafe_view": "view"}  # the other is not at hand, and differs only for autograd
Replay = Callable[..., tuple[Tensor, ...]]


class NotRepeatableError(Exception):
    """What was done depends on more than the shapes of the inputs."""


class Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every operation inside the block; `replay` does them again.

    Args:
        inputs: All tensors that exist before.

    Raises, where the operation is made:
        NotRepeatableError: It reads a tensor that is neither an input nor made inside, or Python sees a value.
    """

    def __init__(self, inputs: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = 0
        self._graph = Graph()
        self._nodes: dict[int, Node | tuple[Node, int]] = {}  # by id; of several results, which one
        self._alive: list[Tensor] = []  # so that no id is given away twice
        for number, tensor in enumerate(inputs):
            self._keep(tensor, self._graph.placeholder(f"input_{number}"))

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch would load its compiler, for a second, only to tell it to leave this class alone

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not _UNKNOWABLE.isdisjoint(operation.tags):
            raise NotRepeatableError(f"{operation} lets Python see a value")
        given, named = map_aggregate(args, self._node_of), map_aggregate(kwargs or {}, self._node_of)
        result = operation(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self._keep(result, self._same_as(operation, result, args, given) or self._note(operation, given, named))
        else:
            node = self._note(operation, given, named)
            for number, each in enumerate(result):
                if isinstance(each, Tensor):
                    self._keep(each, (node, number))
        return result

    def replay(self, outputs: Sequence[Tensor]) -> Replay:
        """A function of the inputs that makes `outputs`, and frees everything else as soon as it is used up."""
        self._graph.output(tuple(self._node_of(tensor) for tensor in outputs))
        for node in reversed(self._graph.nodes):
            if node.op == "call_method" and node.target in ("view", "t") and not node.users:
                self._graph.erase_node(node)
        self.operations = sum(node.op.startswith("call") and node.target is not getitem for node in self._graph.nodes)
        replay: Replay = GraphModule(nn.Module(), self._graph).forward
        return replay

    def _keep(self, tensor: Tensor, node: Node | tuple[Node, int]) -> None:
        self._nodes[id(tensor)] = node
        self._alive.append(tensor)

    def _node_of(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        found = self._nodes.get(id(value))
        if found is None:
            raise NotRepeatableError(f"a tensor {list(value.shape)} comes from elsewhere")
        if isinstance(found, tuple):
            found = self._nodes[id(value)] = self._graph.call_function(getitem, found)
        return found

    def _note(self, operation: Any, args: Any, kwargs: Any) -> Node:
        """The call by the shortest way into torch: what Python binds takes a third of an operator's own call."""
        name = _SAME.get(operation.overloadpacket.__name__, operation.overloadpacket.__name__)
        is_method = isinstance(getattr(Tensor, name, None), MethodDescriptorType)
        if is_method and isinstance(args[0], Node) and operation._schema.arguments[0].name == "self":
            return self._graph.call_method(name, args, kwargs)
        bound = getattr(torch, name, None)
        return self._graph.call_function(bound if isinstance(bound, BuiltinFunctionType) else operation, args, kwargs)

    def _same_as(self, operation: Any, result: Tensor, args: Any, given: Any) -> Node | None:
        """What is there already and is just this, or the same by a shorter way."""
        name = operation.overloadpacket.__name__
        if not operation.is_view or not isinstance(given[0], Node):
            return None
        if _layout(result) == _layout(args[0]):
            return given[0]
        before = given[0]
        if before.op == "call_method" and before.target == name == "t":
            return before.args[0]  # type: ignore[return-value]
        if before.op == "call_method" and before.target == name == "view" and args[0].is_contiguous():
            return self._graph.call_method("view", (before.args[0], *given[1:]))
        return None


def _layout(tensor: Tensor) -> tuple[int, torch.Size, tuple[int, ...], torch.dtype]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
