"""The command line of the agent."""

from __future__ import annotations

import argparse
import os

from edgerec.deploy.agent.boot_check import check_boot
from edgerec.deploy.agent.errors import AgentError, describe
from edgerec.deploy.agent.installation import Installation
from edgerec.deploy.agent.job_process import follow_job
from edgerec.deploy.agent.jobs import run_job
from edgerec.deploy.agent.session import reply, respond_to_requests


def main() -> None:
    parser = argparse.ArgumentParser(prog="agent")
    parser.add_argument("command", choices=["session", "job", "follow", "boot-check"])
    parser.add_argument("--prefix", default="/opt/edgerec")
    parser.add_argument("--job", default="")
    parser.add_argument("--skip", type=int, default=0)
    arguments = parser.parse_args()
    installation = Installation(arguments.prefix)
    os.umask(0o022)
    try:
        if arguments.command == "session":
            respond_to_requests(installation)
        elif arguments.command == "job":
            run_job(installation)
        elif arguments.command == "follow":
            follow_job(installation, arguments.job, arguments.skip, reply)
        else:
            check_boot(installation)
    except AgentError as error:
        reply(error.to_dict())
    except (BrokenPipeError, EOFError):
        pass  # No error is reported if the host has closed the connection.
    except OSError as error:
        reply(AgentError(describe(error), "send").to_dict())
