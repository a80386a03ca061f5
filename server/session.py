"""The server's side of one session of secure aggregation, as a value that collects: no network and no clock in here.

Guarantees: no attribute, and not all of them together, gives a single site's update: the server holds shares only of
the survivors' self-masks and the missing sites' masking keys, and one running sum lies elsewhere.
"""

from common import requests
from common.crypto.agreement import KeyPair, pair_key, self_key
from common.crypto.identity import Identity
from common.crypto.shares import Kind, combine, seed_commitment, share_commitment
from common.errors import MessageError, RunError
from common.session import Confirm, Header, Keys, Opened, Shares, Signed
from common.transcript import KeyList, SenderList, Setting, SurvivorList, check_header, check_shares


class SessionFailed(RunError):
    """A session that can't be opened. `blamed`: sites that are to be left out of the next one, if it is known."""

    def __init__(self, text: str, *, blamed: tuple[str, ...] = ()) -> None:
        super().__init__(text)
        self.blamed = blamed


class Session:
    """One session, through its exchanges. Each `take_…` checks one site's message and adds it; each `ask_…` closes the
    list before it, and from then on that list is what it is.

    Guarantees: a site's message is taken once; the same one again changes nothing; what `take_…` refuses changes
    nothing and is the sender's fault.
    Raises: MessageError from `take_…`; SessionFailed from `ask_…` and `streams` where too few sites are left.
    """

    def __init__(self, *, key: Identity, setting: Setting, number: int) -> None:
        """`key`: the server's online key, as the roster names it."""
        if key.public != setting.roster.server:
            raise ValueError("the server's key is not the one that the roster names")
        self.number, self.setting = number, setting
        self._key = key
        self._keys: dict[str, Keys] = {}
        self._shares: dict[str, Shares] = {}
        self._headers: dict[str, Header] = {}
        self._confirms: dict[str, Confirm] = {}
        self._opened: dict[str, Opened] = {}
        self._key_list: KeyList | None = None
        self._senders: SenderList | None = None
        self._survivors: SurvivorList | None = None

    def ask_keys(self) -> bytes:
        """Exchange K, to sites at the start and to those that were away."""
        return requests.ask_keys(self._key, self.setting, self.number)

    def take_keys(self, signed: Signed) -> None:
        """A site's keys, from K or from A of the session before."""
        keys, site = Keys.of(signed), signed.site
        if site in self._keys:
            return self._same(self._keys[site].signed, signed)
        if self._key_list is not None:
            raise MessageError(f"session {self.number}: keys of {site} after the list was closed")
        if keys.transcript != self.setting.transcript(self.number):
            raise MessageError(f"session {self.number}: keys of {site} for another session, run, study or roster")
        taken = {key for other in self._keys.values() for key in (other.masking, other.channel)}
        if keys.masking == keys.channel or {keys.masking, keys.channel} & taken:
            raise MessageError(f"session {self.number}: keys of {site} that are there already")
        probe = KeyPair.new()
        probe.agree(keys.masking)
        probe.agree(keys.channel)
        self._keys[site] = keys
        return None

    @property
    def key_list(self) -> KeyList:
        """The list of all keys that were taken; closes it."""
        if self._key_list is None:
            try:
                keys = tuple(self._keys[site] for site in sorted(self._keys))
                self._key_list = KeyList(setting=self.setting, session=self.number, keys=keys)
            except MessageError as error:
                raise SessionFailed(str(error)) from error
        return self._key_list

    def ask_shares(self) -> bytes:
        """Exchange S, to the sites of the key list."""
        return requests.ask_shares(self._key, self.key_list)

    @property
    def holders(self) -> tuple[str, ...]:
        """Sites whose shares were taken, by name: who is asked for a masked vector."""
        return tuple(sorted(self._shares))

    @property
    def ready(self) -> bool:
        """Whether so many have sent shares that the session can have its order."""
        return self._key_list is not None and len(self._shares) >= self._key_list.needed

    def take_shares(self, signed: Signed) -> None:
        """A site's shares, from S or from B of the session before."""
        shares, site = Shares.of(signed), signed.site
        if site in self._shares:
            return self._same(self._shares[site].signed, signed)
        if self._key_list is None or self._senders is not None:
            raise MessageError(f"session {self.number}: shares of {site} before the keys, or after the list was closed")
        check_shares(self._key_list, shares)
        self._shares[site] = shares
        return None

    def ask_masked(self, order: bytes, *, next: int = 0) -> bytes:
        """Exchange A, to the senders of shares: the order's SHA-256, and the number of the next session, if any."""
        if self._senders is None:
            try:
                shares = tuple(self._shares[site] for site in sorted(self._shares))
                self._senders = SenderList(key_list=self.key_list, order=order, shares=shares)
            except MessageError as error:
                raise SessionFailed(str(error)) from error
        if order != self._senders.order:
            raise ValueError(f"session {self.number} is for another order")
        return requests.ask_masked(self._key, self._senders, next=next)

    def take_header(self, signed: Signed, *, vector: bytes) -> bool:
        """A site's header for a vector with this SHA-256 of its words. True: the vector belongs into the sum, now and
        once. False: it is there already.
        """
        header, site = Header.of(signed), signed.site
        if site in self._headers:
            self._same(self._headers[site].signed, signed)
            return False
        if self._senders is None or self._survivors is not None:
            raise MessageError(f"session {self.number}: a header of {site} before the order, or after the last")
        check_header(self._senders, header)
        if header.vector != vector:
            raise MessageError(f"session {self.number}: the vector of {site} is not the one that its header names")
        self._headers[site] = header
        return True

    @property
    def masked(self) -> tuple[str, ...]:
        """Sites whose vectors are in the sum so far, by name."""
        return tuple(sorted(self._headers))

    @property
    def survivors(self) -> SurvivorList:
        """The sites whose vectors are in the sum; closes the list. Raises SessionFailed where they are too few."""
        if self._survivors is None:
            if self._senders is None:
                raise SessionFailed(f"session {self.number}: no order was given")
            try:
                headers = tuple(self._headers[site] for site in sorted(self._headers))
                self._survivors = SurvivorList(senders=self._senders, headers=headers)
            except MessageError as error:
                raise SessionFailed(str(error)) from error
        return self._survivors

    def ask_opening(self, next_list: KeyList | None = None) -> bytes:
        """Exchange B, to the survivors; with the next session's key list, if there is one."""
        return requests.ask_opening(self._key, self.setting, self.number, survivors=self.survivors, next_list=next_list)

    def ask_closing(self, next_list: KeyList | None = None) -> bytes:
        """Exchange B where too few survived: the session is closed, and nothing of it is opened."""
        return requests.ask_opening(self._key, self.setting, self.number, survivors=None, next_list=next_list)

    def take_confirm(self, signed: Signed) -> None:
        """A survivor's signature over the survivors, where somebody is missing."""
        confirm, survivors = Confirm.of(signed), self.survivors
        if signed.site not in survivors.names or confirm.transcript != survivors.transcript or not survivors.missing:
            raise MessageError(f"session {self.number}: {signed.site} confirms what it was not asked")
        if signed.site in self._confirms:
            return self._same(self._confirms[signed.site].signed, signed)
        self._confirms[signed.site] = confirm
        return None

    @property
    def confirmers(self) -> tuple[str, ...]:
        """Sites that have confirmed the survivors, by name."""
        return tuple(sorted(self._confirms))

    @property
    def confirmed(self) -> bool:
        """Whether t of them have."""
        return len(self._confirms) >= self.key_list.threshold

    def ask_reveal(self) -> bytes:
        """Exchange C, to those who confirmed: t confirmations."""
        needed = self.key_list.threshold
        if len(self._confirms) < needed:
            raise SessionFailed(
                f"session {self.number}: {len(self._confirms)} sites confirmed the survivors, {needed} are needed"
            )
        confirms = [self._confirms[site] for site in sorted(self._confirms)[:needed]]
        return requests.ask_reveal(self._key, self.setting, self.number, confirms)

    def take_opened(self, signed: Signed) -> None:
        """A survivor's shares. One that doesn't fit its commitment is the answerer's fault: it had said so before where
        it is the dealer's. Such an answer is left out as a whole.
        """
        opened, survivors, site = Opened.of(signed), self.survivors, signed.site
        if site not in survivors.names or opened.transcript != survivors.transcript:
            raise MessageError(f"session {self.number}: {site} opens what it was not asked")
        if site in self._opened:
            return self._same(self._opened[site].signed, signed)
        held = set(survivors.senders.names) - set(self._headers[site].misfits)
        if opened.masking.keys() != held & set(survivors.missing) or opened.self_mask.keys() != held & set(
            survivors.names
        ):
            raise MessageError(f"session {self.number}: {site} opened other shares than those that it was asked for")
        for dealer, share in opened.masking.items():
            self._check(share, "masking", dealer, site)
        for dealer, share in opened.self_mask.items():
            self._check(share, "self", dealer, site)
        self._opened[site] = opened
        return None

    @property
    def openable(self) -> bool:
        """Whether t fitting shares of everything that is needed are there."""
        return all(len(found) >= self.key_list.threshold for found in self._found().values())

    def streams(self) -> list[tuple[bytes, int]]:
        """What to take off the sum: the keys of the survivors' self-masks and of their masks with missing sites, with
        the signs with which the survivors added them.

        Raises SessionFailed where shares are too few, or a dealer's fitting shares don't give what it committed to:
        that dealer is blamed.
        """
        if not self.openable:
            short = [name for name, found in self._found().items() if len(found) < self.key_list.threshold]
            raise SessionFailed(
                f"session {self.number}: fewer than {self.key_list.threshold} shares of {', '.join(short)}"
                + "".join(f"; {one} complains about {other}" for one, other in self.complaints)
            )
        places, transcript = self.key_list.places, self.survivors.senders.transcript
        streams: list[tuple[bytes, int]] = []
        secrets, blamed = self._secrets()
        if blamed:
            raise SessionFailed(f"session {self.number}: {', '.join(blamed)} dealt false shares", blamed=blamed)
        for survivor in self.survivors.names:
            streams.append((self_key(secrets[survivor], transcript, index=places[survivor]), 1))
        for missing in self.survivors.missing:
            pair = KeyPair.of(secrets[missing])
            for survivor in self.survivors.names:
                secret = pair.agree(self._keys[survivor].masking)
                key = pair_key(secret, transcript, one=places[survivor], other=places[missing])
                streams.append((key, 1 if places[survivor] < places[missing] else -1))
        return streams

    @property
    def complaints(self) -> tuple[tuple[str, str], ...]:
        """(site, dealer): the site says that the dealer's shares did not fit. Who of the two lies, a person judges."""
        return tuple((site, dealer) for site in sorted(self._headers) for dealer in self._headers[site].misfits)

    def _found(self) -> dict[str, dict[int, bytes]]:
        """For each sender of shares the shares that came out: of its self-mask where it survived, else of its key."""
        places, missing = self.key_list.places, set(self.survivors.missing)
        found: dict[str, dict[int, bytes]] = {name: {} for name in self.survivors.senders.names}
        for holder in sorted(self._opened):
            opened = self._opened[holder]
            for dealer in found:
                shares = opened.masking if dealer in missing else opened.self_mask
                if dealer in shares:
                    found[dealer][places[holder]] = shares[dealer]
        return found

    def _secrets(self) -> tuple[dict[str, bytes], tuple[str, ...]]:
        """The secrets that t shares each give, and the dealers whose shares give something else."""
        key_list, missing = self.key_list, set(self.survivors.missing)
        secrets, blamed = {}, []
        for dealer, found in self._found().items():
            try:
                secret = combine(dict(sorted(found.items())[: key_list.threshold]))
            except MessageError:
                blamed.append(dealer)
                continue
            if dealer in missing:
                fits = KeyPair.of(secret).public == self._keys[dealer].masking
            else:
                place = key_list.places[dealer]
                committed = seed_commitment(secret, transcript=key_list.transcript, dealer=place)
                fits = committed == self._shares[dealer].seed
            if not fits:
                blamed.append(dealer)
            secrets[dealer] = secret
        return secrets, tuple(blamed)

    def _check(self, share: bytes, kind: Kind, dealer: str, holder: str) -> None:
        places, transcript = self.key_list.places, self.key_list.transcript
        committed = self._shares[dealer].commitments[places[holder] - 1][0 if kind == "masking" else 1]
        if committed != share_commitment(
            share, kind=kind, transcript=transcript, dealer=places[dealer], holder=places[holder]
        ):
            raise MessageError(f"session {self.number}: {holder} opened a share of {dealer} that is not the dealt one")

    def _same(self, taken: Signed, signed: Signed) -> None:
        if taken != signed:
            raise MessageError(f"session {self.number}: a second {signed.name} message of {signed.site}")
