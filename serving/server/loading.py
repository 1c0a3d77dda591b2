"""Loads only the parts of an export that a server calls, which takes half of the memory of the whole export.

`tf.saved_model.load` makes a graph of every function in the file, with a copy of every function that it calls: the functions of
a model with less than 1 MB of weights take 340 MB, and about 160 MB without the signatures that make whole images. A server does
not call those, as it runs the loop of steps itself.
"""

import os
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

GRAPH = "saved_model.pb"


def read_graph(folder: Path) -> saved_model_pb2.SavedModel:
    """Reads the graph file of an export. Raises: errors of any kind for a damaged file."""
    proto = saved_model_pb2.SavedModel()
    proto.ParseFromString((folder / GRAPH).read_bytes())
    if not proto.meta_graphs:
        raise ValueError("it holds no graph")
    return proto


def load_with(folder: Path, proto: saved_model_pb2.SavedModel, signatures: Collection[str]):
    """Loads an export with these signatures only. Changes `proto`.

    The smaller graph is written to a temporary folder, with links to the other files of the export. If links cannot be made,
    the whole export is loaded.
    """
    _keep(proto, signatures)
    with tempfile.TemporaryDirectory(prefix="tfsd-") as linked:
        try:
            for child in folder.resolve().iterdir():
                if child.name != GRAPH:
                    os.symlink(child, Path(linked) / child.name)
            (Path(linked) / GRAPH).write_bytes(proto.SerializeToString())
        except OSError:  # on Windows, few users may make links
            return tf.saved_model.load(str(folder))
        return tf.saved_model.load(linked)


def _keep(proto: saved_model_pb2.SavedModel, signatures: Collection[str]):
    """Removes the other signatures, and every function that is not called any more."""
    graph = proto.meta_graphs[0]
    objects = graph.object_graph_def
    root = objects.nodes[0]
    signature_map = objects.nodes[next(child.node_id for child in root.children if child.local_name == "signatures")]
    kept = [child for child in signature_map.children if child.local_name in signatures]
    wanted = {child.node_id for child in kept}
    for child in signature_map.children:
        if child.node_id not in wanted:
            _make_empty(objects.nodes[child.node_id])
    del signature_map.children[:]
    signature_map.children.extend(kept)
    roots = {name for node in objects.nodes for name in _called_by_object(node)}
    for name in set(objects.concrete_functions) - roots:
        del objects.concrete_functions[name]
    functions = {function.signature.name: function for function in graph.graph_def.library.function}
    needed = _reachable(roots, functions)
    library = type(graph.graph_def.library)()
    library.function.extend(function for name, function in functions.items() if name in needed)
    library.gradient.extend(graph.graph_def.library.gradient)
    graph.graph_def.library.CopyFrom(library)


def _make_empty(node):
    """Empties an object of the saved graph. It is not removed, since objects refer to each other by their positions."""
    node.Clear()
    node.user_object.identifier = "_generic_user_object"
    node.user_object.version.producer = node.user_object.version.min_consumer = 1


def _called_by_object(node) -> Iterator[str]:
    """Yields the names of the functions of an object of the saved graph."""
    yield node.bare_concrete_function.concrete_function_name
    yield from node.function.concrete_functions


def _reachable(roots: set[str], functions: dict) -> set[str]:
    """Returns the names of `roots` and of all functions that they call, directly or indirectly."""
    found, waiting = set(), list(roots)
    while waiting:
        name = waiting.pop()
        if name in found or name not in functions:
            continue
        found.add(name)
        for node in functions[name].node_def:
            waiting.append(node.op)  # some calls are operations with the function's name
            for attribute in node.attr.values():
                waiting += [attribute.func.name, *(one.name for one in attribute.list.func)]
    return found
