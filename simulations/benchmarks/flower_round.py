"""One round of Flower's SecAgg+ without a network: its own client mod for each site, asked stage by stage.

The server's messages are made here, as `SecAggPlusWorkflow` of flwr 1.41 makes them, with everybody as everybody's
neighbour. Who asks may lie: that is what `simulations.attacks.flower` does.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, RECORD_KEY_STATE, Key, Stage
from flwr.compat.common.recorddict_compat import fitres_to_recorddict
from numpy.typing import NDArray

from common.wire import speak_as_server

CLIPPING_RANGE, TARGET_RANGE, MOD_RANGE, MAX_WEIGHT = 8.0, 2**22, 2**32, 1000.0  # the workflow's defaults
Arrays = Sequence[NDArray[np.float32]]


class FlowerSite:
    """A client with `secaggplus_mod`, whose training gives `arrays`."""

    def __init__(self, node: int, arrays: Arrays, *, examples: int = 100, dice: float = 0.5) -> None:
        self.node, self._arrays, self._examples, self._dice = node, arrays, examples, dice
        self._context = Context(run_id=1, node_id=node, node_config={}, state=RecordDict(), run_config={})
        self.train()

    def train(self) -> None:
        """Have the result ready that the next masked vector is made of."""
        result = FitRes(
            status=Status(Code.OK, ""),
            parameters=ndarrays_to_parameters(list(self._arrays)),
            num_examples=self._examples,
            metrics={"dice": self._dice},
        )
        self._result = fitres_to_recorddict(result, keep_input=False)

    def ask(self, stage: str, configs: Mapping[str, Any]) -> RecordDict:
        """The site's whole answer to one request. Raises what the mod raises."""
        speak_as_server(run_id=1)
        record = RecordDict({RECORD_KEY_CONFIGS: ConfigRecord({Key.STAGE: stage, **configs})})
        message = Message(record, dst_node_id=self.node, message_type="train", group_id="1")
        return secaggplus_mod(message, self._context, self._trained).content

    def _trained(self, message: Message, _context: Context) -> Message:
        return Message(self._result, reply_to=message)

    @property
    def state(self) -> ConfigRecord:
        """What the mod keeps between stages."""
        return self._context.state.config_records[RECORD_KEY_STATE]

    def rewind(self, state: ConfigRecord) -> None:
        """Be again where the mod had kept this."""
        self._context.state.config_records[RECORD_KEY_STATE] = state


class FlowerRound:
    """A round up to the shares that a threshold of more than half the sites asks for."""

    def __init__(self, sites: Sequence[FlowerSite]) -> None:
        self.sites = {site.node: site for site in sites}
        self.threshold = len(sites) // 2 + 1
        self.public = {node: self.set_up(site) for node, site in self.sites.items()}
        self.sealed = {node: self.shares(site, self.public) for node, site in self.sites.items()}

    def set_up(self, site: FlowerSite) -> list[bytes]:
        """A site's two public keys: for masks, and for shares."""
        configs = {
            Key.SAMPLE_NUMBER: len(self.sites),
            Key.SHARE_NUMBER: len(self.sites),
            Key.THRESHOLD: self.threshold,
            Key.CLIPPING_RANGE: CLIPPING_RANGE,
            Key.TARGET_RANGE: TARGET_RANGE,
            Key.MOD_RANGE: MOD_RANGE,
            Key.MAX_WEIGHT: MAX_WEIGHT,
        }
        answer: Any = site.ask(Stage.SETUP, configs).config_records[RECORD_KEY_CONFIGS]
        return [answer[Key.PUBLIC_KEY_1], answer[Key.PUBLIC_KEY_2]]

    def shares(self, site: FlowerSite, public: Mapping[int, list[bytes]]) -> dict[int, bytes]:
        """A site's encrypted shares by who they are for, once it has been shown these public keys."""
        shown = {str(node): keys for node, keys in public.items()}
        answer: Any = site.ask(Stage.SHARE_KEYS, shown).config_records[RECORD_KEY_CONFIGS]
        return dict(zip(answer[Key.DESTINATION_LIST], answer[Key.CIPHERTEXT_LIST], strict=True))

    def masked(self, site: FlowerSite, sealed: Mapping[int, bytes] | None = None) -> RecordDict:
        """A site's answer with its masked vector, once it has been given its peers' shares: the real ones, or these."""
        if sealed is None:
            sealed = {node: shares[site.node] for node, shares in self.sealed.items() if node != site.node}
        configs = {Key.SOURCE_LIST: list(sealed), Key.CIPHERTEXT_LIST: list(sealed.values())}
        return site.ask(Stage.COLLECT_MASKED_VECTORS, configs)

    def opened(self, site: FlowerSite, *, active: Sequence[int], dead: Sequence[int]) -> list[tuple[int, bytes]]:
        """Whose shares a site hands over when it is asked for them."""
        configs = {Key.ACTIVE_NODE_ID_LIST: list(active), Key.DEAD_NODE_ID_LIST: list(dead)}
        answer: Any = site.ask(Stage.UNMASK, configs).config_records[RECORD_KEY_CONFIGS]
        return list(zip(answer[Key.NODE_ID_LIST], answer[Key.SHARE_LIST], strict=True))


def vector_of(answer: RecordDict) -> list[bytes]:
    """The arrays of a masked vector, as they were sent: the weight first, then one for each array."""
    sent: Any = answer.config_records[RECORD_KEY_CONFIGS][Key.MASKED_PARAMETERS]
    return list(sent)
