"""Tests that an emulated device boots Debian with a camera and without internet access."""

from __future__ import annotations

import socket
import threading


def output(device, *command):
    done = device.run(command)
    assert not done.code, done.reason
    return done.stdout.strip()


def test_all_services_start_without_errors(device):
    assert output(device, "systemctl", "is-system-running") == "running"


def test_virtual_camera_is_available(device):
    assert output(device, "cat", "/sys/class/video4linux/video0/name").startswith("vivid")


def test_device_cannot_connect_to_this_machine_or_the_internet(device):
    with socket.create_server(("127.0.0.1", 0)) as server:
        # 10.0.2.2 is the address of the host in QEMU's virtual network.
        connect = f"import socket; socket.create_connection(('10.0.2.2', {server.getsockname()[1]}), timeout=5)"
        assert device.run(["python3", "-c", connect]).code != 0
    assert "default" not in output(device, "ip", "route")


def test_program_on_the_device_reaches_a_forwarded_port(device):
    received = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept():
            connection, _ = server.accept()
            with connection:
                received.append(connection.recv(5))

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        send = "import socket; socket.create_connection(('127.0.0.1', 1883), timeout=20).sendall(b'hello')"
        with device.forwarded_port(1883, server.getsockname()[1]):
            output(device, "python3", "-c", send)
            thread.join(60)
    assert received == [b"hello"]


def test_synced_files_survive_a_power_cut(device):
    output(device, "sh", "-c", "echo synced > /root/file && sync")
    device.cut_power()
    assert not device.running
    device.start()
    assert output(device, "cat", "/root/file") == "synced"


def test_device_continues_from_a_snapshot(device):
    output(device, "sh", "-c", "echo before > /run/state")
    boot_id = output(device, "cat", "/proc/sys/kernel/random/boot_id")
    device.save_snapshot("ready")
    output(device, "sh", "-c", "echo after > /run/state")
    device.cut_power()
    device.start(snapshot="ready")
    assert output(device, "cat", "/run/state") == "before"
    assert output(device, "cat", "/proc/sys/kernel/random/boot_id") == boot_id
