"""What the SuperLink is asked on loopback: let SuperNodes in, start a study's run, say how it is, stop it."""

import io
import os
import zipfile
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import TypeVar

import httpx
from flwr.common.serde import user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.fab_pb2 import Fab
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from common import processes
from common.crypto import node_key
from common.errors import RunError
from common.study import Study
from server.folder import Folder

# The bundle that Flower wants with a run. It holds no code: sites and server run what is installed.
_APP = """[project]
name = "fedward"
version = "{version}"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedward"

[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "client.app:app"

[tool.flwr.app.config]
study = ""
"""
_GONE = ("unregistered", "deleted")

Request = TypeVar("Request")
Answer = TypeVar("Answer")


class Control:
    """A connection to the SuperLink of a folder.

    Raises: RunError, one line, from every method when the SuperLink is away or refuses.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        os.environ.update(processes.direct_loopback())  # read when a client is made
        self._client = ControlHttpClient.from_server_address(
            server_address=folder.superlink,
            insecure=False,
            root_certificates=folder.root.read_bytes(),
            interceptors=[RuntimeVersionHttpInterceptor(component_name="fedward")],
        )

    def admit(self, keys: Mapping[str, str]) -> list[str]:
        """Let exactly these SuperNodes in: `keys`, public keys by site. What was changed, a line each."""
        wanted = {node_key.public_pem(line): site for site, line in keys.items()}
        nodes = self._ask(self._client.ListNodes, ListNodesRequest()).nodes_info
        known = {node.public_key: node.node_id for node in nodes if node.status not in _GONE}
        said = []
        for key in known.keys() - wanted.keys():
            self._ask(self._client.UnregisterNode, UnregisterNodeRequest(node_id=known[key]))
            said.append(f"SuperNode {known[key]}: no longer in the roster, shut out")
        for key in sorted(wanted.keys() - known.keys(), key=wanted.__getitem__):
            self._ask(self._client.RegisterNode, RegisterNodeRequest(public_key=key, name=wanted[key]))
            said.append(f"{wanted[key]}: its SuperNode is let in")
        return said

    def sites(self, keys: Mapping[str, str]) -> dict[int, str]:
        """The site of each node that has proved to hold the SuperNode key of one."""
        named = {node_key.public_pem(line): site for site, line in keys.items()}
        nodes = self._ask(self._client.ListNodes, ListNodesRequest()).nodes_info
        return {
            node.node_id: named[node.public_key]
            for node in nodes
            if node.status not in _GONE and node.public_key in named
        }

    def online(self, keys: Mapping[str, str]) -> dict[str, bool]:
        """Whether the SuperNode of each site is heard of."""
        nodes = self._ask(self._client.ListNodes, ListNodesRequest()).nodes_info
        heard = {node.public_key for node in nodes if node.status == "online"}
        return {site: node_key.public_pem(line) in heard for site, line in keys.items()}

    def start(self, study: Study) -> int:
        """Start a run of this study; Flower's number of it."""
        return self.start_bundle(_bundle(), {"study": study.canonical})

    def start_bundle(self, bundle: bytes, config: Mapping[str, str]) -> int:
        """Start a run with any bundle at all."""
        request = StartRunRequest(fab=Fab(content=bundle), override_config=user_config_to_proto(dict(config)))
        started = self._ask(self._client.StartRun, request)
        if not started.HasField("run_id"):
            raise RunError("Flower started no run; see the SuperLink's log")
        return int(started.run_id)

    def status(self, run: int) -> str:
        """How a run is: "pending", "starting", "running", "finished:completed", "finished:failed" …"""
        found = self._ask(self._client.ListRuns, ListRunsRequest(run_id=run)).run_dict
        if run not in found:
            return "unknown"
        status = found[run].status
        return f"{status.status}:{status.sub_status}" if status.sub_status else str(status.status)

    def stop(self, run: int) -> None:
        """End a run."""
        self._ask(self._client.StopRun, StopRunRequest(run_id=run))

    def close(self) -> None:
        self._client.close()

    def _ask(self, call: Callable[[Request], Answer], request: Request) -> Answer:
        try:
            return call(request)
        except httpx.HTTPStatusError as error:
            said = " ".join(error.response.text.split())[:300]
            raise RunError(f"the SuperLink refuses ({error.response.status_code}): {said}") from error
        except (httpx.HTTPError, ValueError) as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise RunError(
                    f"the SuperLink at {self._folder.superlink} is another federation's, or its certificate has"
                    " expired: give this one other ports with `server init FOLDER --loopback`, or `server renew`"
                ) from error
            raise RunError(
                f"the SuperLink at {self._folder.superlink} does not answer: is `server up` running?"
            ) from error


def _bundle() -> bytes:
    """The same bytes for the same release: Flower knows a bundle by its hash."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        file.writestr(zipfile.ZipInfo("pyproject.toml"), _APP.format(version=version("fedward")))
    return made.getvalue()
