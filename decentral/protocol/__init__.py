"""Processes that turn a topology and its timing into a trace. No JAX here."""

from decentral.protocol.all_reduce import AllReduce
from decentral.protocol.base import MEETINGS, STOPS, Demand, Gradients, Network, Protocol, Stop, Time
from decentral.protocol.mailbox import Mailbox
from decentral.protocol.overlapped import Overlapped, rounds_of_counts
from decentral.protocol.pipeline import Pipeline
from decentral.protocol.poisson import Poisson
from decentral.protocol.recorded import Recorded
from decentral.protocol.rendezvous import Rendezvous
from decentral.protocol.rounds import Rounds
from decentral.protocol.server import Server

PROTOCOLS = {
    "poisson": Poisson,
    "rendezvous": Rendezvous,
    "rounds": Rounds,
    "all_reduce": AllReduce,
    "overlapped": Overlapped,
    "pipeline": Pipeline,
    "mailbox": Mailbox,
    "server": Server,
    "recorded": Recorded,
}
"""Every protocol by the name a spec uses."""

__all__ = [
    "MEETINGS",
    "PROTOCOLS",
    "STOPS",
    "AllReduce",
    "Demand",
    "Gradients",
    "Mailbox",
    "Network",
    "Overlapped",
    "Pipeline",
    "Poisson",
    "Protocol",
    "Recorded",
    "Rendezvous",
    "Rounds",
    "Server",
    "Stop",
    "Time",
    "rounds_of_counts",
]
