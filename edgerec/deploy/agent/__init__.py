"""A program that installs, starts and monitors releases on a device, and does not depend on other code of edgerec.

The program requires Python 3.9 and only uses the standard library and :mod:`edgerec.contract.signature`. The host packs
these modules into a zip application (see :mod:`edgerec.deploy.agent_archive`), copies it to ``/opt/edgerec/agent.pyz``,
and runs it as root with one of these commands:

* ``session`` responds to a host's requests on stdin, and receives files.
* ``job`` executes the request in ``job.json``, even if the SSH connection is lost.
* ``follow`` prints the progress of a job.
* ``boot-check`` restores the previous release if the device restarted while a new release was being monitored.

Requests and replies are JSON objects, one per line. A deployment consists of these requests::

    host                                 session on the device
    {"do": "status"}                 ->  installed releases, digests of the files, state of the camera
    {"do": "lock"}                   ->  {"locked": true}; only one session can lock the installation
    {"do": "plan"}                   ->  files that are missing in the content store
    {"do": "update-agent"} + bytes   ->  {"updated": digest}; only if the installed agent differs
    {"do": "receive"} + bytes        ->  {"received": number} ..., {"stored": digest}; for each missing file
    {"do": "deploy"}                 ->  the session starts the job, and sends the lines of its log:
                                         {"step": name, ...} ..., {"result": release} or {"error": reason}

The agent never runs code from a bundle or a wheel as root: pip and ``edgerec verify`` run as the user ``nobody``.

Each new release has a trial period, which ends when the agent accepts the release or restores the previous one.
``trial.json`` exists during the trial period. The agent writes ``trial.json`` before it replaces the symbolic link
``current``, so that the device always has a working release after a power failure.
"""
