import socket

import psutil
import pytest

from dsllm.errors import UserError
from dsllm.training.network import choose_interface, export_interface


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.1.1", "localhost"])
def test_a_loopback_master_is_reached_over_loopback(address: str) -> None:
    assert "127.0.0.1" in {held.address for held in psutil.net_if_addrs()[choose_interface(address)]}


def test_a_master_on_this_host_is_reached_over_the_interface_that_holds_its_address() -> None:
    own = [
        (interface, held.address)
        for interface, addresses in psutil.net_if_addrs().items()
        for held in addresses
        if held.family == socket.AF_INET
    ]
    for interface, address in own:
        assert choose_interface(address) == interface


def test_a_master_that_cannot_be_resolved_is_named() -> None:
    with pytest.raises(UserError, match=r"MASTER_ADDR no-such-host\.invalid: .* pass --master_addr"):
        choose_interface("no-such-host.invalid")


def test_gloo_and_nccl_get_the_interface() -> None:
    environ = {"MASTER_ADDR": "127.0.0.1", "CROSS_SIZE": "1"}
    export_interface(environ)
    loopback = choose_interface("127.0.0.1")
    assert (environ["GLOO_SOCKET_IFNAME"], environ["NCCL_SOCKET_IFNAME"]) == (loopback, f"={loopback}")


def test_what_the_user_has_set_stays() -> None:
    environ = {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "ib0"}
    export_interface(environ)
    assert environ["GLOO_SOCKET_IFNAME"] == "ib0" and "NCCL_SOCKET_IFNAME" in environ


def test_a_process_without_a_launcher_is_left_alone() -> None:
    environ: dict[str, str] = {}
    export_interface(environ)
    assert environ == {}


def test_several_hosts_cannot_meet_at_a_loopback_address() -> None:
    with pytest.raises(UserError, match=r"MASTER_ADDR 127\.0\.1\.1: .* loopback address, .* pass --master_addr"):
        export_interface({"MASTER_ADDR": "127.0.1.1", "CROSS_SIZE": "2"})
