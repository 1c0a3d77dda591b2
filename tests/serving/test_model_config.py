import os

import pytest
from google.protobuf import text_format
from model_folders import Loader, config, error_of, latest, put, served, states
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from tfsd.serving.server.models import Models


@pytest.fixture
def loader():
    return Loader()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "models"


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("", [10]),
        ("model_version_policy { latest { num_versions: 2 } }", [10, 2]),
        ("model_version_policy { all {} }", [10, 2, 1]),
        ("model_version_policy { specific { versions: 1 versions: 2 versions: 77 } }", [2, 1]),
    ],
)
def test_version_policy_chooses(folder, loader, policy, expected):
    put(folder, "tiny/1", "tiny/2", "tiny/10")
    models = served(folder, loader, config(folder, ("tiny", policy)))
    assert list(states(models)) == expected
    assert latest(models) == expected[0] and latest(models, version=expected[-1]) == expected[-1]


# The texts are TF Serving's own: server_core.cc, basic_manager.cc, manager.h, get_model_status_impl.cc.
@pytest.mark.parametrize(
    ("call", "which", "code", "message"),
    [
        ("get", ("none",), "NOT_FOUND", "Servable not found for request: Latest(none)"),
        ("get", ("tiny", 7), "NOT_FOUND", "Servable not found for request: Specific(tiny, 7)"),
        ("get", ("tiny", None, "x"), "INVALID_ARGUMENT", "Unrecognized servable version label: x"),
        ("get", ("none", None, "x"), "INVALID_ARGUMENT", "Unrecognized servable version label: x"),
        ("get", ("tiny", None, "early"), "NOT_FOUND", "Servable not found for request: Specific(tiny, 5)"),
        ("get", ("",), "INVALID_ARGUMENT", "ModelSpec has no name specified."),
        ("status", ("none",), "NOT_FOUND", "Could not find any versions of model none"),
        ("status", ("tiny", 7), "NOT_FOUND", "Could not find version 7 of model tiny"),
    ],
)
def test_what_is_not_there_is_told_in_the_words_of_tf_serving(folder, loader, call, which, code, message):
    put(folder, "tiny/1")
    labels = 'version_labels { key: "stable" value: 1 } version_labels { key: "early" value: 5 }'
    models = served(folder, loader, config(folder, ("tiny", labels)))
    error = error_of(getattr(models, call), *which)
    assert (error.code, error.message) == (code, message)
    assert latest(models, label="stable") == 1


def test_new_config_unloads_models_that_it_does_not_list(folder, loader):
    put(folder, "tiny/1", "other/1")
    models = served(folder, loader)
    models.reload(config(folder, ("other", "")))
    assert states(models) == {1: "END"} and latest(models, "other") == 1
    assert error_of(models.get, "tiny").message == "Servable not found for request: Latest(tiny)"
    put(folder, "tiny/2")
    models.reload()
    assert states(models) == {1: "END"}  # the config counts, no longer the folder


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        (
            'config { name: "new" base_path: "FOLDER/none" model_platform: "tensorflow" }',
            "INVALID_ARGUMENT",
            "not find base path",
        ),
        ('config { name: "new" base_path: "FOLDER/empty" model_platform: "tensorflow" }', "NOT_FOUND", "numerical version path"),
        ('config { name: "new" base_path: "tiny" model_platform: "tensorflow" }', "INVALID_ARGUMENT", "absolute path or URI"),
        (
            'config { name: "new" base_path: "FOLDER/tiny" model_platform: "other" }',
            "INVALID_ARGUMENT",
            "unsupported platform other",
        ),
        ('config { name: "new" base_path: "FOLDER/tiny" }', "INVALID_ARGUMENT", "model_platform"),
        ('config { base_path: "FOLDER/tiny" model_platform: "tensorflow" }', "INVALID_ARGUMENT", "must have a name"),
        (
            2 * 'config { name: "new" base_path: "FOLDER/tiny" model_platform: "tensorflow" }',
            "INVALID_ARGUMENT",
            "multiple times",
        ),
    ],
)
def test_wrong_config_changes_nothing(folder, loader, text, code, message):
    put(folder, "tiny/1")
    (folder / "empty").mkdir()
    models = served(folder, loader)
    proto = text_format.Parse(f"model_config_list {{ {text.replace('FOLDER', str(folder))} }}", ModelServerConfig())
    error = error_of(models.reload, proto)
    assert error.code == code and message in error.message
    models.reload()
    assert latest(models) == 1


def test_config_of_another_kind_is_refused_as_by_tf_serving(folder, loader):
    put(folder, "tiny/1")
    error = error_of(served(folder, loader).reload, ModelServerConfig())
    assert error.code == "INVALID_ARGUMENT" and error.message.startswith("ServerModelConfig type not supported")


def test_relative_paths_begin_at_the_root_that_is_given(folder, loader):
    put(folder, "tiny/1")
    text = 'model_config_list { config { name: "renamed" base_path: "tiny" model_platform: "tensorflow" } }'
    models = served(folder, loader, text_format.Parse(text, ModelServerConfig()), root=folder)
    assert latest(models, "renamed") == 1


def test_new_model_that_cannot_be_loaded_fails_the_reload_and_spares_the_others(folder, loader):
    put(folder, "tiny/1")
    put(folder, "new/1", text="damaged")
    models = served(folder, loader, config(folder, ("tiny", "")))
    error = error_of(models.reload, config(folder, ("tiny", ""), ("new", "")))
    assert error.code == "UNKNOWN" and "saved_model.pb is damaged." in error.message
    assert latest(models) == 1 and states(models, "new") == {1: "END"}


def test_label_moves_only_to_a_version_that_serves(folder, loader):
    put(folder, "tiny/1", "tiny/2")
    policy = "model_version_policy { all {} } "

    def labelled(version):
        return config(folder, ("tiny", f'{policy} version_labels {{ key: "stable" value: {version} }}'))

    models = served(folder, loader, labelled(1))
    error = error_of(models.reload, labelled(3))
    assert error.code == "FAILED_PRECONDITION" and error.message == (
        "Request to assign label to version 3 of model tiny, which is not currently available for inference"
    )
    assert latest(models, label="stable") == 1
    models.reload(labelled(2))
    assert latest(models, label="stable") == 2
    assert models.status("tiny", label="stable").model_version_status[0].version == 2


def test_poll_seconds_must_make_sense(folder, loader):
    put(folder, "tiny/1")
    with pytest.raises(ValueError, match="poll_seconds"):
        Models(folder, poll_seconds=-1, load=loader)


@pytest.mark.parametrize("name", ["1", "0001", "18446744073709551616", "-1", "1.5", "\u0661"])
def test_only_whole_numbers_name_versions(folder, loader, name):
    put(folder, "tiny/3")
    put(folder, os.path.join("tiny", name))
    models = served(folder, loader, config(folder, ("tiny", "model_version_policy { all {} }")))
    assert set(states(models)) == ({1, 3} if name in ("1", "0001") else {3})
