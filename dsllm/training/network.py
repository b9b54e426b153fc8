"""The network interface over which the ranks meet, found from MASTER_ADDR instead of asked of the user.

Left alone, gloo takes the interface that holds the address of the host's own name. Debian writes `127.0.1.1 node1` into
/etc/hosts, so two hosts wait for each other on loopback until they give up. NCCL takes the first that is not loopback,
which may be a container bridge. The routing table knows better:

    MASTER_ADDR=10.77.0.1   on node1, whose own it is: source address 10.77.0.1, held by eth0
                            on node2:                  source address 10.77.0.2, held by eth0
    MASTER_ADDR=127.0.0.1   one machine:               source address 127.0.0.1, held by lo
"""

import socket
from collections.abc import MutableMapping

import psutil

from dsllm.errors import UserError


def choose_interface(master_addr: str) -> str:
    """The name of the interface that reaches `master_addr`, such as `eth0`; `lo` for a loopback address.

    Raises:
        UserError: the address cannot be resolved, or no interface leads to it.
    """
    source = _source_address(master_addr)
    for interface, addresses in psutil.net_if_addrs().items():
        if any(address.address == source for address in addresses):
            return interface
    raise UserError(
        f"MASTER_ADDR {master_addr}: no interface of {socket.gethostname()} holds the source address {source}"
    )


def export_interface(environ: MutableMapping[str, str]) -> None:
    """Sets GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME in `environ` from its MASTER_ADDR; what the user has set stays.

    Must come before `torch.distributed` is initialised. Without MASTER_ADDR, that is without a launcher, does nothing.

    Raises:
        UserError: as `choose_interface`; or several hosts are to meet at an address that never leaves this one.
    """
    master_addr = environ.get("MASTER_ADDR")
    if master_addr is None or {"GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"} <= environ.keys():
        return
    interface = choose_interface(master_addr)
    if int(environ.get("CROSS_SIZE", "1")) > 1 and interface == _loopback_interface():  # DeepSpeed: the number of hosts
        raise UserError(
            f"MASTER_ADDR {master_addr}: on {socket.gethostname()} it is a loopback address, which the other hosts "
            f"cannot reach; pass --master_addr with this host's address on the network (`hostname -I` prints them)"
        )
    environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    environ.setdefault(
        "NCCL_SOCKET_IFNAME", f"={interface}"
    )  # NCCL takes a bare name for a prefix: eth1 would mean eth10 too


def _source_address(master_addr: str) -> str:
    """The address that a packet from here to `master_addr` would carry as its source."""
    here = socket.gethostname()
    try:
        targets = socket.getaddrinfo(master_addr, 1, type=socket.SOCK_DGRAM)
    except OSError as error:
        raise UserError(
            f"MASTER_ADDR {master_addr}: {here} cannot resolve it ({error.strerror}); "
            f"pass --master_addr with an IP address"
        ) from None
    reasons = []
    for family, kind, protocol, _, target in targets:
        with socket.socket(family, kind, protocol) as probe:
            try:
                probe.connect(target)  # of a datagram socket: it asks the routing table and sends nothing
            except OSError as error:
                reasons.append(str(error.strerror))
                continue
            return str(probe.getsockname()[0])
    raise UserError(
        f"MASTER_ADDR {master_addr}: {here} has no route to it ({', '.join(reasons)}); "
        f"pass --master_addr with an address of the first host that every host reaches"
    )


def _loopback_interface() -> str:
    return next(
        interface
        for interface, addresses in psutil.net_if_addrs().items()
        if any(address.address == "127.0.0.1" for address in addresses)
    )
