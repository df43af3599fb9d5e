"""Help texts of options that several commands have."""

from __future__ import annotations

MOVED_DATA_HELP = "New location of the run's images, if they were moved. [default: the location in the run's recipe]"
DELEGATE_HELP = (
    "Delegate: a shared library such as libedgetpu.so.1, gpu, or none for the CPU. [default: the bundle's delegate]"
)
DELEGATE_OPTION_HELP = "Option for the delegate, such as device=usb:1 for the second USB device. May be repeated."
