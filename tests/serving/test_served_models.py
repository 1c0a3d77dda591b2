import gc
import shutil
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
from model_folders import Loader, config, error_of, latest, put, served, states
from patience import LONG, until

from tfsd.serving.server.metrics import Metrics
from tfsd.serving.server.models import Models
from tfsd.serving.wire.errors import CODES


@pytest.fixture
def loader():
    return Loader()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "models"


def test_folder_of_models_and_folder_of_one_model_both_serve(folder, loader):
    put(folder, "tiny/1", "other/3")
    models = served(folder, loader)
    assert (latest(models), latest(models, "other")) == (1, 3) and models.ready
    assert latest(served(folder, loader, folder / "tiny")) == 1


def test_folder_without_a_model_is_an_error_that_says_how_to_make_one(folder, loader):
    folder.mkdir()
    put(folder, "tiny/partial", "tiny/.1.partial")
    for source in (folder, folder / "none"):
        error = error_of(Models, source, load=loader)
        assert error.code == "NOT_FOUND" and "tfsd export saved_model" in error.message


def test_latest_version_serves_unless_told_otherwise(folder, loader):
    put(folder, "tiny/1", "tiny/2", "tiny/10")
    assert states(served(folder, loader)) == {10: "AVAILABLE"}
    assert loader.loaded == ["tiny/10"]


def test_new_version_takes_over_and_the_old_one_ends(folder, loader):
    put(folder, "tiny/1")
    models = served(folder, loader)
    put(folder, "tiny/2")
    models.reload()
    assert states(models) == {2: "AVAILABLE", 1: "END"} and latest(models) == 2
    assert error_of(models.get, "tiny", 1).code == "NOT_FOUND"


def test_old_version_serves_while_the_new_one_loads(folder, loader):
    put(folder, "tiny/1")
    models = served(folder, loader)
    put(folder, "tiny/2")
    loader.go.clear(), loader.began.clear()
    reloading = threading.Thread(target=models.reload)
    reloading.start()
    assert loader.began.wait(LONG)
    assert states(models) == {2: "LOADING", 1: "AVAILABLE"} and latest(models) == 1 and models.ready
    loader.go.set()
    reloading.join(LONG)
    assert latest(models) == 2


def test_version_in_use_is_unloaded_after_its_last_request(folder, loader):
    put(folder, "tiny/1")
    models = served(folder, loader)
    first, second = models.get("tiny"), models.get("tiny", 1)
    engine = weakref.ref(first.engine)
    put(folder, "tiny/2")
    models.reload()
    assert states(models) == {2: "AVAILABLE", 1: "UNLOADING"} and latest(models) == 2
    first.release()
    first.release()  # twice is once
    assert states(models)[1] == "UNLOADING" and second.engine.version == 1
    second.release()
    until(lambda: states(models)[1] == "END")
    gc.collect()
    assert engine() is None


def test_version_that_is_wanted_again_while_in_use_serves_again(folder, loader):
    put(folder, "tiny/1")
    models = served(folder, loader)
    put(folder, "tiny/2")
    with models.get("tiny") as engine:
        models.reload()
        shutil.rmtree(folder / "tiny/2")
        models.reload()
        with models.get("tiny") as again:
            assert again is engine
    assert states(models) == {2: "END", 1: "AVAILABLE"}


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("damaged", "DATA_LOSS", "saved_model.pb is damaged."),
        ("memory", "RESOURCE_EXHAUSTED", "ResourceExhaustedError: no memory left"),
        ("odd", "INTERNAL", "KeyError: 'odd'"),
    ],
)
def test_version_that_cannot_be_loaded_is_reported_and_the_old_one_serves(folder, loader, text, code, message):
    put(folder, "tiny/1")
    models = served(folder, loader)
    put(folder, "tiny/2", text=text)
    models.reload()
    assert states(models) == {2: "END", 1: "AVAILABLE"} and latest(models) == 1 and models.ready
    status = models.status("tiny", 2).model_version_status[0].status
    assert (status.error_code, status.error_message) == (CODES[code][0], message)
    assert models.status("tiny", 1).model_version_status[0].status.error_code == 0


def test_start_fails_with_the_reason_where_nothing_can_serve(folder, loader):
    put(folder, "tiny/1", text="damaged")
    error = error_of(served, folder, loader)
    assert error.code == "UNKNOWN" and error.message == (
        "1 model(s) did not become available: {{{name: tiny version: 1} due to error: DATA_LOSS: saved_model.pb is damaged.}, }"
    )


def test_folder_without_saved_model_is_no_version_until_it_is_complete(folder, loader):
    put(folder, "tiny/1")
    models = served(folder, loader)
    (folder / "tiny/2/variables").mkdir(parents=True)
    models.reload()
    assert states(models) == {1: "AVAILABLE"}
    put(folder, "tiny/2")
    models.reload()
    assert latest(models) == 2


def test_removed_version_is_unloaded_and_the_one_before_serves(folder, loader):
    put(folder, "tiny/1", "tiny/2")
    models = served(folder, loader)
    shutil.rmtree(folder / "tiny/2")
    models.reload()
    assert states(models) == {2: "END", 1: "AVAILABLE"}


def test_model_without_versions_is_unloaded_but_a_missing_disk_unloads_nothing(folder, loader):
    put(folder, "tiny/1", "other/1")
    models = served(folder, loader)
    shutil.rmtree(folder / "other/1")
    models.reload()
    assert states(models, "other") == {1: "END"} and not models.ready and latest(models) == 1
    folder.rename(folder.with_name("away"))
    models.reload()
    assert latest(models) == 1


def test_new_model_in_the_folder_serves_after_a_reload(folder, loader):
    put(folder, "tiny/1")
    models = served(folder, loader)
    put(folder, "other/1")
    models.reload()
    assert latest(models, "other") == 1


def pollers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "tfsd-models"}


def test_polling_finds_new_versions_by_itself_and_a_failed_one_again_only_when_it_changed(folder, loader):
    put(folder, "tiny/1")
    before = pollers()
    models = served(folder, loader, poll_seconds=0.01)
    try:
        put(folder, "tiny/2", text="damaged")
        until(lambda: states(models).get(2) == "END")
        time.sleep(0.1)
        assert loader.loaded == ["tiny/1", "tiny/2"]
        put(folder, "tiny/2", text="fine!")
        until(lambda: latest(models) == 2)
        assert loader.loaded == ["tiny/1", "tiny/2", "tiny/2"]
    finally:
        models.close()
    put(folder, "tiny/3")
    time.sleep(0.1)
    until(lambda: not pollers() - before)
    assert latest(models) == 2


def test_without_polling_nothing_changes_by_itself(folder, loader):
    put(folder, "tiny/1")
    models = served(folder, loader)
    put(folder, "tiny/2")
    time.sleep(0.1)
    assert latest(models) == 1


def test_reload_tries_a_failed_version_again(folder, loader):
    put(folder, "tiny/1")
    models = served(folder, loader)
    put(folder, "tiny/2", text="memory")
    models.reload()
    models.reload()
    assert loader.loaded == ["tiny/1", "tiny/2", "tiny/2"]


def test_status_lists_the_latest_version_first(folder, loader):
    put(folder, "tiny/2", "tiny/10", "tiny/1")
    models = served(folder, loader, config(folder, ("tiny", "model_version_policy { all {} }")))
    assert [entry.version for entry in models.status("tiny").model_version_status] == [10, 2, 1]


def test_manifests_and_metrics_show_what_serves(folder, loader):
    put(folder, "tiny/1", "other/2")
    metrics = Metrics()
    models = served(folder, loader, metrics=metrics)
    assert models.manifests() == {"other": {2: {"name": "other"}}, "tiny": {1: {"name": "tiny"}}}
    page = metrics.render()[0].decode()
    assert 'tfsd_model_versions{model="tiny",state="AVAILABLE"} 1.0' in page
    put(folder, "tiny/3")
    models.reload()
    assert 'tfsd_model_versions{model="tiny",state="END"} 1.0' in metrics.render()[0].decode()


@pytest.mark.slow
def test_requests_find_a_version_at_every_moment_of_many_reloads(folder, loader):
    put(folder, "tiny/1")
    models, stop, answered = served(folder, loader), threading.Event(), []

    def ask():
        while not stop.is_set():
            with models.get("tiny") as engine:
                assert engine is not None
                answered.append(engine.version)
                time.sleep(0.001)

    with ThreadPoolExecutor(4) as threads:
        asking = [threads.submit(ask) for _ in range(4)]
        for version in range(2, 12):
            put(folder, f"tiny/{version}")
            models.reload()
            shutil.rmtree(folder / f"tiny/{version - 1}")
        stop.set()
        for task in asking:
            task.result(LONG)
    assert len(set(answered)) > 5
    until(lambda: {state for version, state in states(models).items() if version < 11} == {"END"})
    shutil.rmtree(folder / "tiny/11")
    models.reload()
    assert set(states(models).values()) == {"END"}  # at once, as no version has a lease that was not given back


@pytest.fixture(scope="module")
def exported(toy_export, tmp_path_factory):
    """The models of a copy of an export, loaded by the engine, and the copy."""
    folder = tmp_path_factory.mktemp("served") / "models"
    shutil.copytree(toy_export, folder)
    models = Models(folder)
    models.start()
    return models, folder / "toy"


@pytest.mark.slow
def test_damaged_export_is_reported_with_the_file_and_the_old_version_serves(exported):
    models, folder = exported
    shutil.copytree(folder / "1", folder / "2")
    weights = folder / "2/variables/variables.data-00000-of-00001"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    models.reload()
    status = models.status("toy", 2).model_version_status[0].status
    assert status.error_code == CODES["DATA_LOSS"][0] and "variables.data" in status.error_message
    assert latest(models, "toy") == 1
    shutil.rmtree(folder / "2")


@pytest.mark.slow
def test_unloaded_export_leaves_the_memory(exported):
    models, folder = exported
    with models.get("toy") as engine:
        forgotten = weakref.ref(engine)
        model = weakref.ref(engine.model)
        del engine
    (folder / "1/saved_model.pb").rename(folder / "1/aside.pb")
    models.reload()
    assert states(models, "toy")[1] == "END"
    assert forgotten() is None and model() is None
    (folder / "1/aside.pb").rename(folder / "1/saved_model.pb")
