"""Between our types and those of kv.proto that are not tickets, both ways."""

from __future__ import annotations

from cluster.engine import TransferCount
from cluster.kv_link import KvStats
from cluster.wire import transfer_to_wire
from kv_transfer.lease import LeaseView
from kv_transfer.transport import Endpoint, Layout, Region
from protos.baton.v1 import kv_pb2 as pb


def endpoint_to_wire(endpoint: Endpoint) -> pb.RankEndpoint:
    layout = endpoint.layout
    return pb.RankEndpoint(
        offers=dict(endpoint.offers),
        regions=[
            pb.Region(address=r.address, stride=r.stride, block_bytes=r.block_bytes, num_blocks=r.num_blocks)
            for r in layout.regions
        ],
        memory=layout.memory,
        device_id=layout.device_id,
    )


def endpoint_from_wire(wire: pb.RankEndpoint) -> Endpoint:
    regions = tuple(Region(r.address, r.stride, r.block_bytes, r.num_blocks) for r in wire.regions)
    return Endpoint(dict(wire.offers), Layout(regions, wire.memory, wire.device_id))


def stats_to_wire(stats: KvStats) -> pb.KvStatsResponse:
    return pb.KvStatsResponse(
        leases=stats.leases,
        pinned_blocks=stats.pinned_blocks,
        pending_releases=stats.pending_releases,
        leases_offered=stats.leases_offered,
        leases_released=stats.leases_released,
        leases_expired=stats.leases_expired,
        blocks_sent=stats.blocks_sent,
        bytes_sent=stats.bytes_sent,
        recomputed_requests=stats.recomputed_requests,
        pulls=[transfer_to_wire(count) for count in stats.transfers],
    )


def stats_from_wire(wire: pb.KvStatsResponse) -> KvStats:
    return KvStats(
        leases=wire.leases,
        pinned_blocks=wire.pinned_blocks,
        pending_releases=wire.pending_releases,
        leases_offered=wire.leases_offered,
        leases_released=wire.leases_released,
        leases_expired=wire.leases_expired,
        blocks_sent=wire.blocks_sent,
        bytes_sent=wire.bytes_sent,
        recomputed_requests=wire.recomputed_requests,
        transfers=tuple(_pull_from_wire(pull) for pull in wire.pulls),
    )


def lease_to_wire(lease: LeaseView) -> pb.KvLease:
    return pb.KvLease(
        lease=lease.lease,
        state=lease.state,
        reader_id=lease.reader_id,
        blocks=lease.blocks,
        age_s=lease.age_s,
        left_s=lease.left_s,
        growing=lease.growing,
    )


def lease_from_wire(wire: pb.KvLease) -> LeaseView:
    return LeaseView(wire.lease, wire.state, wire.reader_id, wire.blocks, wire.age_s, wire.left_s, wire.growing)


def _pull_from_wire(wire: pb.TransferCount) -> TransferCount:
    return TransferCount(wire.transport, wire.outcome, wire.count, wire.blocks, wire.bytes, wire.seconds)
