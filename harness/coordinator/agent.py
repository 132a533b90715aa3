"""Run by Ray's daemon of a machine in place of an agent that nobody asks anything.

The daemon starts two agents, each a Python process with Ray in it, waits for their ports, and ends where one
of them ends. The dashboard's serves a dashboard, and there is none. The one for environments makes what
actors and tasks with a ``runtime_env`` run in, and ranks have none; whoever starts the harness with ``uv
run``, or in a job of Ray's, has one all the same. So this process listens in its place, and becomes the agent
with the first connection: Ray asks again.

``python -I -S agent.py COMMAND ...`` takes the agent's own command (`harness.coordinator.private` puts it
there). It imports little: that is what it is for.
"""

import os
import select
import socket
import sys

LOOK_S = 0.5
"""Seconds between looks at the daemon: without it there is nobody left to serve."""
UNUSED = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port")
"""What the dashboard's agent tells of itself: -1, as where the dashboard's libraries are missing."""
USED = "runtime_env_agent_port"


def tell(values: dict[str, str], name: str, port: int) -> None:
    """Write a port where the daemon looks for it."""
    path = os.path.join(values["session-dir"], f"{name}_{values['node-id']}")
    with open(path + ".part", "w") as file:
        file.write(str(port))
    os.replace(path + ".part", path)


def main(command: list[str]) -> None:
    """Wait for the end of the daemon, or for a connection.

    Args:
        command: The agent's own, with ``--session-dir``, ``--node-id`` and, of the agent for environments,
            ``--node-ip-address`` and ``--runtime-env-agent-port``, 0 for any.
    """
    daemon = os.getppid()
    values = dict(word[2:].split("=", 1) for word in command if word.startswith("--") and "=" in word)
    asked, listener = values.get("runtime-env-agent-port"), None
    if asked is None:
        for name in UNUSED:
            tell(values, name, -1)
    else:
        place = values["node-ip-address"], int(asked)
        family, kind, number, _, address = socket.getaddrinfo(*place, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, number)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
        port = listener.getsockname()[1]
        tell(values, USED, port)
    while os.getppid() == daemon:
        if select.select([listener] if listener else [], [], [], LOOK_S)[0] and listener:
            listener.close()
            option = "--runtime-env-agent-port="
            words = [f"{option}{port}" if word.startswith(option) else word for word in command]
            os.execv(words[0], words)


if __name__ == "__main__":
    main(sys.argv[1:])
