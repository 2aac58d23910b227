"""The adapters of one server, on disk and in memory, as an administrator sees them."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from finlora.adapters.adapter import WEIGHTS_FILE, Adapter
from finlora.adapters.residency import ResidentAdapter
from finlora.api.admin_protocol import AdapterRow
from finlora.api.state import ServerState
from finlora.errors import AdapterError

if TYPE_CHECKING:
    from finlora.engine.administration import AdapterReport


def adapter_rows(state: ServerState, report: "AdapterReport") -> list[AdapterRow]:
    """What is served, and every other version that is in memory: by name, the served one first."""
    aliases = state.registry.aliases()
    rows = []
    for resident, stored, current in _found(state, report):
        meant = sorted(alias for alias, name in aliases.items() if name == resident.name)
        num_requests = report.num_requests.get(resident.digest, 0)
        rows.append(_row(resident, stored, current, meant, num_requests))
    return sorted(rows, key=lambda row: (row.name, not row.current))


def _found(
    state: ServerState, report: "AdapterReport"
) -> Iterator[tuple[ResidentAdapter, Adapter | None, bool]]:
    """Where a version is in memory, the version on disk, and whether it is what its name means."""
    held = {resident.digest: resident for resident in report.residents}
    served = state.adapters()
    for adapter in served:
        absent = ResidentAdapter(adapter.name, adapter.digest)
        yield held.get(adapter.digest, absent), adapter, True
    for digest in held.keys() - {adapter.digest for adapter in served}:
        yield held[digest], _stored(state, held[digest]), False


def _stored(state: ServerState, resident: ResidentAdapter) -> Adapter | None:
    try:
        return state.registry.resolve(f"{resident.name}@{resident.digest}")
    except AdapterError:  # removed while it is in memory
        return None


def _row(
    resident: ResidentAdapter,
    stored: Adapter | None,
    current: bool,
    aliases: list[str],
    num_requests: int,
) -> AdapterRow:
    return AdapterRow(
        name=resident.name if stored is None else stored.name,
        digest=resident.digest,
        current=current,
        aliases=aliases,
        tiers=[*([] if stored is None else ["disk"]), *resident.tiers],
        loading=resident.loading,
        pinned=resident.pinned,
        requests=num_requests,
        disk_bytes=None if stored is None else (stored.folder / WEIGHTS_FILE).stat().st_size,
        memory_bytes=resident.num_bytes if resident.tiers else None,
        last_used=resident.last_used,
    )
