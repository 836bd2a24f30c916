"""Topics of generated users: which words the texts of a domain use. Generated data: not LaMP."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Topic:
    """The words of one topic."""

    name: str
    people: tuple[str, ...]
    places: tuple[str, ...]
    things: tuple[str, ...]
    methods: tuple[str, ...]


def _topic(name: str, people: str, places: str, things: str, methods: str) -> Topic:
    return Topic(name, *(tuple(words.split(", ")) for words in (people, places, things, methods)))


TOPICS: tuple[Topic, ...] = (
    _topic(
        "kitchen",
        "chef, baker, waiter, cook",
        "bakery, diner, kitchen, cellar",
        "sourdough, broth, oven, pepper, cheese, knife",
        "slow roasting, fermenting, tasting",
    ),
    _topic(
        "ocean",
        "sailor, diver, captain, fisherman",
        "harbour, reef, lagoon, pier",
        "tide, whale, anchor, coral, ferry, squall",
        "sonar, tagging, dredging",
    ),
    _topic(
        "railway",
        "conductor, engineer, porter, signalman",
        "platform, depot, tunnel, junction",
        "locomotive, timetable, carriage, brake, ticket, gauge",
        "scheduling, inspection, welding",
    ),
    _topic(
        "orchestra",
        "violinist, composer, drummer, singer",
        "theatre, studio, stage, academy",
        "sonata, trumpet, rehearsal, chorus, tempo, baton",
        "transposing, recording, tuning",
    ),
    _topic(
        "hospital",
        "nurse, surgeon, patient, midwife",
        "ward, clinic, pharmacy, corridor",
        "vaccine, scalpel, fever, bandage, diagnosis, pulse",
        "imaging, screening, triage",
    ),
    _topic(
        "farm",
        "farmer, shepherd, vet, beekeeper",
        "barn, orchard, pasture, silo",
        "harvest, tractor, honey, wheat, goat, manure",
        "grafting, rotation, irrigation",
    ),
    _topic(
        "mountain",
        "climber, guide, ranger, skier",
        "summit, glacier, hut, ridge",
        "avalanche, rope, altitude, granite, crevasse, trail",
        "mapping, belaying, drilling",
    ),
    _topic(
        "market",
        "trader, broker, cashier, auditor",
        "bank, exchange, shop, vault",
        "loan, bond, inflation, coin, tariff, invoice",
        "hedging, forecasting, lending",
    ),
    _topic(
        "workshop",
        "carpenter, potter, welder, smith",
        "forge, garage, sawmill, bench",
        "lathe, chisel, varnish, hinge, clay, rivet",
        "sanding, casting, polishing",
    ),
    _topic(
        "space",
        "astronaut, pilot, physicist, astronomer",
        "orbit, observatory, launchpad, crater",
        "comet, rocket, telescope, nebula, module, asteroid",
        "spectroscopy, docking, tracking",
    ),
)
