"""Tests of the commands that run when a decision changes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from edgerec import CameraConfig, run_camera
from edgerec.camera.actions import Action, resolved_actions
from edgerec.camera.config import ActionConfig, RegionConfig, WebPageConfig
from edgerec.camera.sinks import actions as module
from edgerec.camera.sinks.actions import CommandActions
from edgerec.errors import ConfigError, EdgerecError
from edgerec.utils.child_process import run_program
from tests.camera.test_region_sinks import region_result
from tests.conftest import error_line
from tests.network import state_change, wait_for

# Program that appends the variables of a decision to a file.
RECORD = """
import json, os, sys
with open(sys.argv[1], "a") as file:
    print(json.dumps({key: value for key, value in os.environ.items() if key.startswith("EDGEREC_")}), file=file)
"""


@contextmanager
def running(*configs, **options):
    """Context manager that creates and closes a sink for the commands of actions."""
    sink = CommandActions([Action(config, config.source) for config in configs], **options)
    try:
        yield sink
    finally:
        sink.close()


def recording(path, on="any", **settings):
    return ActionConfig(on, command=(sys.executable, "-c", RECORD, str(path)), **settings)


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def decisions(*labels, region="door"):
    """Return a result for each label. Consecutive equal labels belong to the same decision."""
    results, since_s = [], 0.0
    for index, label in enumerate(labels):
        if results and label != labels[index - 1]:
            since_s += 1.0
        results.append(region_result(region, label, index, since_s=since_s))
    return results


def shell(script, on="any", **settings):
    return ActionConfig(on, command=("sh", "-c", script), **settings)


# Decisions.


def test_command_runs_once_per_decision_with_its_values(tmp_path):
    path = tmp_path / "log"
    with running(recording(path), live=False) as sink:
        for result in decisions("stop", "stop", "go", "go", "stop"):
            sink.write(result)
    values = records(path)
    assert [(v["EDGEREC_LABEL"], v["EDGEREC_PREVIOUS_LABEL"]) for v in values] == [
        ("stop", ""),
        ("go", "stop"),
        ("stop", "go"),
    ]
    first = values[0]
    assert (first["EDGEREC_SOURCE"], first["EDGEREC_REGION"], first["EDGEREC_SCORE"]) == ("camera", "door", "0.7500")
    elapsed_s = float(values[1]["EDGEREC_TIME"]) - float(first["EDGEREC_TIME"])
    assert elapsed_s == pytest.approx(1.0, abs=0.01)
    assert (sink.succeeded, sink.dropped, sink.replaced) == (3, 0, 0)


@pytest.mark.parametrize(
    ("on", "expected"),
    [("go", ["go"]), (("stop", "go"), ["stop", "go", "stop"]), (["stop"], ["stop", "stop"]), (("any",), [])],
)
def test_command_runs_only_for_its_labels(on, expected, tmp_path):
    path = tmp_path / "log"
    with running(recording(path, on), live=False) as sink:
        for result in decisions("stop", "go", "stop"):
            sink.write(result)
    assert [value["EDGEREC_LABEL"] for value in records(path)] == expected


def test_action_of_a_region_ignores_other_regions_and_sources(tmp_path):
    door, yard, everything = (tmp_path / name for name in ("door", "yard", "everything"))
    actions = (recording(door, region="door"), recording(yard, source="yard"), recording(everything))
    results = [region_result("door", "go"), region_result("window", "stop"), region_result(None, "go", source="yard")]
    with running(*actions, live=False) as sink:
        for result in results:
            sink.write(result)
    seen = [[(v["EDGEREC_SOURCE"], v["EDGEREC_REGION"]) for v in records(path)] for path in (door, yard, everything)]
    assert seen == [
        [("camera", "door")],
        [("yard", "")],
        [("camera", "door"), ("camera", "window"), ("yard", "")],
    ]


def test_previous_label_is_empty_after_a_lost_source(tmp_path):
    path = tmp_path / "log"
    with running(recording(path), live=False) as sink:
        sink.write(region_result("door", "go", since_s=1))
        sink.state(state_change("lost", "other"))
        sink.write(region_result("door", "stop", since_s=2))
        sink.write(region_result(None, "go", source="camera/2", since_s=2))
        sink.state(state_change("lost"))
        sink.write(region_result("door", "go", since_s=3))
        sink.write(region_result(None, "stop", source="camera/2", since_s=3))
    assert [value["EDGEREC_PREVIOUS_LABEL"] for value in records(path)] == ["", "go", "", "", "go"]


def test_single_images_without_a_decision_start_no_command(tmp_path):
    with running(recording(tmp_path / "log"), live=False) as sink:
        sink.write(replace(region_result(None), decision=None))
    assert records(tmp_path / "log") == []


# Safety.


def test_values_are_never_interpreted_by_a_shell(tmp_path):
    label = "$(touch hacked); `id` \"' & | \n ü"
    path = tmp_path / "log"
    result = region_result("door")
    with running(recording(path), live=False) as sink:
        sink.write(replace(result, decision=replace(result.decision, label=label)))
    assert records(path)[0]["EDGEREC_LABEL"] == label


def test_secrets_are_not_passed_to_commands(tmp_path, monkeypatch):
    secrets = ["EDGEREC_MQTT_PASSWORD", "EDGEREC_MQTT_PASSWORD_FILE", "EDGEREC_WEB_TOKEN", "EDGEREC_WEBHOOK_SECRET"]
    for name in (*secrets, "CAMERA_URL", "EDGEREC_URL", "NOTIFY_SOCKET", "EDGEREC_OTHER", "KEPT"):
        monkeypatch.setenv(name, "hush")
    path = tmp_path / "log"
    script = f"env > {path}"
    with running(shell(script), live=False, secrets=["CAMERA_URL", "EDGEREC_URL"]) as sink:
        sink.write(region_result("door"))
    passed = {line.partition("=")[0] for line in path.read_text().splitlines() if line.endswith("=hush")}
    assert passed == {"EDGEREC_OTHER", "KEPT"}


def test_command_cannot_read_the_standard_input_or_write_to_the_standard_output(tmp_path, capfd):
    with running(shell(f"echo noise; cat > {tmp_path}/input"), live=False) as sink:
        sink.write(region_result("door"))
    assert (tmp_path / "input").read_text() == ""
    assert capfd.readouterr().out == ""


def process_exists(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return state != "Z"


def test_command_and_its_children_are_killed_after_the_time_limit(tmp_path, caplog):
    script = f"sleep 1000 & echo $! > {tmp_path}/pid; wait"
    with running(shell(script, timeout_s=0.5), live=False) as sink:
        sink.write(region_result("door"))
    assert (sink.succeeded, sink.dropped) == (0, 1)
    assert "the command sh of action[0] timed out after 0.5 s; 1 of 1 commands failed so far" in caplog.text
    wait_for(lambda: not process_exists(int((tmp_path / "pid").read_text())))


def test_failed_commands_are_logged_with_their_last_error_line_at_a_limited_rate(caplog):
    script = "echo output; echo first >&2; echo 'cannot open the door' >&2; echo; exit 3"
    with running(shell(script), live=False) as sink:
        for result in decisions("stop", "go", "stop"):
            sink.write(result)
    assert (sink.dropped, sink.succeeded) == (3, 0)
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        "the command sh of action[0] exited with code 3: cannot open the door; 1 of 1 commands failed so far"
    ]


def test_output_of_a_command_is_limited_and_does_not_block_it(caplog):
    """The command writes more data than a pipe can buffer, and the error message contains the last line."""
    code = "import sys\nfor _ in range(300): sys.stderr.write('x' * 10000)\nsys.exit('\\nthe end')"
    with running(ActionConfig("any", command=(sys.executable, "-c", code)), live=False) as sink:
        sink.write(region_result("door"))
    assert "exited with code 1: the end;" in caplog.text


def test_program_in_the_background_does_not_delay_the_next_command(tmp_path):
    """The background process of a command keeps the output pipe open."""
    script = f"sleep 1000 & echo $! >> {tmp_path}/pids"
    with running(shell(script, timeout_s=300), live=False) as sink:
        for result in decisions("stop", "go"):
            sink.write(result)
    pids = [int(line) for line in (tmp_path / "pids").read_text().split()]
    for pid in pids:
        os.kill(pid, 9)
    assert (sink.succeeded, len(pids)) == (2, 2)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("edgerec-action")]


# Queue.


def blocking(tmp_path):
    """Return a command that waits until the file ``go`` exists and then records its decision."""
    code = f"import os, sys, time\nopen({str(tmp_path / 'started')!r}, 'w')\n"
    code += f"while not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(0.01)\n" + RECORD
    return ActionConfig("any", command=(sys.executable, "-c", code, str(tmp_path / "log")), timeout_s=60)


def test_abandoned_sink_ends_a_waiting_write():
    with running(shell("sleep 60", timeout_s=60), live=False) as sink:
        writer = threading.Thread(target=lambda: [*map(sink.write, decisions("stop", "go", "stop", "go"))], daemon=True)
        writer.start()
        writer.join(0.5)
        assert writer.is_alive()
        sink.abandon()
        writer.join(15)
        assert not writer.is_alive()
    assert (sink.succeeded, sink.dropped) == (0, 4)


def test_newest_decision_of_each_region_replaces_waiting_commands(tmp_path, caplog):
    with running(blocking(tmp_path)) as sink:
        sink.write(region_result("door", "stop", since_s=0))
        wait_for((tmp_path / "started").exists)
        for since_s in range(1, 6):
            sink.write(region_result("door", "go" if since_s % 2 else "stop", since_s=since_s))
            sink.write(region_result("window", "go", since_s=since_s))
        (tmp_path / "go").touch()
        wait_for(lambda: sink.succeeded == 3)
    values = [(v["EDGEREC_REGION"], v["EDGEREC_LABEL"]) for v in records(tmp_path / "log")]
    assert values == [("door", "stop"), ("door", "go"), ("window", "go")]
    assert (sink.replaced, sink.dropped) == (8, 0)
    assert caplog.text.count("is too slow: 1 commands were replaced so far") == 1


def test_no_command_is_replaced_if_the_source_is_a_file(tmp_path):
    path = tmp_path / "log"
    labels = ["stop", "go"] * 5
    with running(recording(path), live=False) as sink:
        for result in decisions(*labels):
            sink.write(result)
    assert [value["EDGEREC_LABEL"] for value in records(path)] == labels
    assert sink.replaced == 0


def test_running_command_is_killed_at_the_end_of_a_live_camera(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(module, "FLUSH_S", 0.5)
    script = f"echo $$ > {tmp_path}/pid; exec sleep 1000"
    with running(shell(script, timeout_s=600)) as sink:
        sink.write(region_result("door", "stop"))
        wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip())
        sink.write(region_result("window", "stop"))
        pid = int((tmp_path / "pid").read_text())
        assert process_exists(pid)
    wait_for(lambda: not process_exists(pid))
    assert "1 commands of actions were not run before the camera ended" in caplog.text
    wait_for(lambda: sink.dropped == 2)


def test_missing_program_is_reported_at_the_start(tmp_path):
    file = tmp_path / "not-executable"
    file.write_text("#!/bin/sh\n")
    for program in ("edgerec-missing-program", str(file)):
        with pytest.raises(EdgerecError, match=r"its program .* was not found or is not executable"):
            CommandActions([Action(ActionConfig("any", command=(program,)), None)])


def test_program_that_cannot_be_started_is_a_failed_command(tmp_path, caplog):
    program = tmp_path / "program"
    program.write_text("#!/missing/interpreter\n")
    program.chmod(0o755)
    with running(ActionConfig("any", command=(str(program),)), live=False) as sink:
        sink.write(region_result("door"))
    assert sink.dropped == 1
    assert "the command program of action[0] cannot be started: No such file or directory" in caplog.text


def test_event_stops_a_program_and_its_children(tmp_path):
    stop, script = threading.Event(), f"sleep 1000 & echo $! > {tmp_path}/pid; wait"
    outcomes = []
    thread = threading.Thread(
        target=lambda: outcomes.append(run_program(["sh", "-c", script], timeout_s=600, stop=stop))
    )
    thread.start()
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip())
    stop.set()
    thread.join(30)
    assert (outcomes[0].finished, outcomes[0].failure) == (False, "was stopped")
    wait_for(lambda: not process_exists(int((tmp_path / "pid").read_text())))


def test_output_of_a_program_with_a_stop_event_is_complete():
    code = "import sys, time\nfor _ in range(3): sys.stdout.write('x' * 200_000); sys.stdout.flush(); time.sleep(0.2)"
    outcome = run_program([sys.executable, "-c", code], timeout_s=60, stop=threading.Event())
    assert (outcome.code, len(outcome.stdout)) == (0, 600_000)


# Configuration.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"command": "beep --loud"}, r"ActionConfig.command is 'beep --loud'; expected a list with the program"),
        ({"command": ()}, r"ActionConfig.command is \(\); expected a list"),
        ({}, r"ActionConfig.command and gpio are both missing: set one of them"),
        ({"command": ("x",), "gpio": 17}, r"ActionConfig.command and gpio exclude each other: set only one"),
        ({"command": ("x",), "on": ()}, r"ActionConfig.on is empty"),
        ({"command": ("x",), "timeout_s": 0}, r"ActionConfig.timeout_s is 0; expected more than 0, up to 3600"),
        ({"gpio": 17, "pulse_s": -1}, r"ActionConfig.pulse_s is -1; expected more than 0"),
    ],
)
def test_invalid_action_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        ActionConfig(**{"on": "any"} | settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"on": "stopp"}, r"CameraConfig.actions\[0\].on has an unknown label 'stopp'; did you mean 'stop'"),
        ({"region": "dor"}, r"CameraConfig.actions\[0\].region is 'dor'; expected one of door"),
        ({"region": "door", "source": "1"}, r"actions\[0\].region is 'door', but the source 1 has no regions: add"),
        (
            {"source": "rtsp://u:hush@x/"},
            r"CameraConfig.actions\[0\].source is not a source of the camera; expected one of 0",
        ),
    ],
)
def test_action_with_an_unknown_name_is_refused(settings, message):
    config = ActionConfig(**{"on": "any", "command": ("x",)} | settings)
    with pytest.raises(ConfigError, match=message) as raised:
        resolved_actions([config], ["0", "1"], ["0", "1"], {"0": ["door"]}, ["stop", "go"])
    assert "hush" not in f"{raised.value}{config}"


def test_pin_can_be_used_only_once():
    configs = [ActionConfig("stop", gpio=17), ActionConfig("go", gpio=17)]
    with pytest.raises(ConfigError, match=r"CameraConfig.actions\[1\].gpio is 17 in two actions"):
        resolved_actions(configs, ["0"], ["0"], {}, ["stop", "go"])


def test_actions_of_a_camera_run_for_each_region(bundle, video, tmp_path, monkeypatch):
    monkeypatch.setenv("PAGE_TOKEN", "hush hush")
    path = tmp_path / "log"
    config = CameraConfig(
        bundle=bundle,
        sources=str(video),
        output="none",
        max_frames=60,
        regions=(RegionConfig("whole", (0, 0, 1, 1)), RegionConfig("corner", (0, 0, 0.1, 0.1))),
        actions=(recording(path, region="whole"), shell(f"env > {tmp_path}/env", "any", region="corner")),
        web=WebPageConfig("127.0.0.1:0", token="env:PAGE_TOKEN"),
        decision={"smoothing": "none"},
    )
    report = run_camera(config)
    assert (report.dropped, report.exit_code) == ({}, 0)
    values = records(path)
    assert {value["EDGEREC_REGION"] for value in values} == {"whole"}
    labels = [value["EDGEREC_LABEL"] for value in values]
    assert len(labels) >= 8
    assert [value["EDGEREC_PREVIOUS_LABEL"] for value in values] == ["", *labels[:-1]]
    assert "hush hush" not in (tmp_path / "env").read_text()


def test_failed_commands_are_in_the_report(bundle, video, caplog):
    config = CameraConfig(bundle=bundle, sources=str(video), output="none", max_frames=1, actions=(shell("exit 1"),))
    report = run_camera(config)
    assert (report.dropped, report.exit_code) == ({"actions": 1}, 1)
    assert caplog.messages[-1] == "actions: 1 command failed"
    assert "did not process" not in caplog.text


def test_actions_in_a_file(bundle, video, tmp_path, edgerec):
    path, log = tmp_path / "camera.toml", tmp_path / "log"
    text = f"""
        bundle = {json.dumps(str(bundle))}
        sources = {json.dumps(str(video))}
        output = "none"
        max_frames = 30

        [[action]]
        on = ["0", "1"]
        command = {json.dumps([sys.executable, "-c", RECORD, str(log)])}
        timeout_s = 60
    """
    path.write_text(text)
    config = CameraConfig.from_file(path)
    assert config.actions == (recording(log, ("0", "1"), timeout_s=60.0),)
    (tmp_path / "copy.toml").write_text(config.to_toml())
    assert CameraConfig.from_file(tmp_path / "copy.toml") == config
    process = edgerec("camera", "--config", path)
    assert process.returncode == 0, process.stderr
    assert {value["EDGEREC_LABEL"] for value in records(log)} <= {"0", "1"}
    assert len(records(log)) >= 1
    path.write_text(text.replace('["0", "1"]', '"zero"'))
    assert "has an unknown label 'zero'" in error_line(edgerec("camera", "--config", path))
    path.write_text(text.replace("command = [", "command = 'beep' #"))
    assert "action[0].command is 'beep'; expected a list of strings" in error_line(edgerec("camera", "--config", path))


@pytest.mark.parametrize("source", ["synthetic:64x48@30", "video"])
def test_command_does_not_outlive_a_stopped_camera(bundle, video, tmp_path, source):
    """After the first signal, the camera waits for the commands. The second signal kills the commands."""
    sources = str(video) if source == "video" else source
    config = f"""
        bundle = {json.dumps(str(bundle))}
        sources = {json.dumps(sources)}
        output = "none"

        [[action]]
        on = "any"
        command = ["sh", "-c", "echo $$ > {tmp_path}/pid; exec sleep 1000"]
        timeout_s = 3600
    """
    (tmp_path / "camera.toml").write_text(config)
    command = [sys.executable, "-m", "edgerec", "camera", "--config", str(tmp_path / "camera.toml")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip(), 60)
        pid = int((tmp_path / "pid").read_text())
        process.terminate()
        if source == "video":
            with suppress(subprocess.TimeoutExpired):
                process.wait(1)
            process.terminate()
        process.communicate(timeout=60)
    finally:
        process.kill()
    wait_for(lambda: not process_exists(pid))
