"""The words of the generated language: synonyms, antonyms, hypernyms, polarity, names and pronouns, in two genres.

A concept has one or two interchangeable forms (synonyms). Nouns have a kind, whose own noun is their hypernym; verbs
and adjectives may have an opposite. The genre `shore` has nouns and places that `village` lacks; they share the
other words.
"""

from __future__ import annotations

import dataclasses

GENRES = ("village", "shore")


@dataclasses.dataclass(frozen=True, slots=True)
class Noun:
    """A noun concept: `forms` are (singular, plural) pairs, `kind` names the hypernym."""

    key: str
    kind: str
    genre: str
    forms: tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Verb:
    """A verb concept: `forms` are (base, third person, participle); `objects` the kinds it takes, () for none."""

    key: str
    forms: tuple[tuple[str, str, str], ...]
    objects: tuple[str, ...]
    opposite: str | None
    parent: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class Adjective:
    """An adjective concept with its opposite (None for a colour) and the kinds of noun it goes with."""

    key: str
    forms: tuple[str, ...]
    opposite: str | None
    kinds: tuple[str, ...]


ANIMATE = ("person", "animal")
THINGS = ("tool", "fruit", "vehicle")
KINDS = ANIMATE + THINGS

_KIND_NOUNS = {
    "person": "person/people",
    "animal": "animal/animals beast/beasts",
    "tool": "tool/tools",
    "fruit": "fruit/fruits",
    "vehicle": "vehicle/vehicles",
}

_NOUNS = {
    ("village", "person"): """doctor/doctors physician/physicians; teacher/teachers instructor/instructors;
        farmer/farmers grower/growers; child/children kid/kids; baker/bakers; judge/judges""",
    ("village", "animal"): """dog/dogs hound/hounds; cat/cats; horse/horses pony/ponies; rabbit/rabbits bunny/bunnies;
        goat/goats; owl/owls""",
    ("village", "tool"): "hammer/hammers mallet/mallets; shovel/shovels spade/spades; broom/brooms; axe/axes",
    ("village", "fruit"): "apple/apples; pear/pears; plum/plums; orange/oranges",
    (
        "village",
        "vehicle",
    ): "car/cars auto/autos; truck/trucks lorry/lorries; bicycle/bicycles bike/bikes; tractor/tractors",
    (
        "shore",
        "person",
    ): """sailor/sailors mariner/mariners; captain/captains skipper/skippers; pilot/pilots aviator/aviators;
        diver/divers; fisherman/fishermen angler/anglers""",
    ("shore", "animal"): "whale/whales; seal/seals; crab/crabs; gull/gulls seagull/seagulls; otter/otters",
    ("shore", "tool"): "anchor/anchors; lantern/lanterns lamp/lamps; rope/ropes cord/cords; net/nets",
    ("shore", "fruit"): "coconut/coconuts; mango/mangoes; banana/bananas",
    ("shore", "vehicle"): "ship/ships; boat/boats dinghy/dinghies; raft/rafts; submarine/submarines",
}

# base third participle, synonyms after a bar; then the kinds of object; then opposite or parent
_ANY = ANIMATE + THINGS
_TRANSITIVE: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("chase chases chased|pursue pursues pursued", "avoid avoids avoided|evade evades evaded", ANIMATE),
    ("help helps helped|assist assists assisted", "hinder hinders hindered|obstruct obstructs obstructed", ANIMATE),
    ("love loves loved|adore adores adored", "hate hates hated|detest detests detested", _ANY),
    ("praise praises praised|commend commends commended", "blame blames blamed|scold scolds scolded", ANIMATE),
    ("follow follows followed|shadow shadows shadowed", "guide guides guided|lead leads led", ANIMATE),
    ("find finds found|discover discovers discovered", "lose loses lost|misplace misplaces misplaced", THINGS),
    ("push pushes pushed|shove shoves shoved", "pull pulls pulled|drag drags dragged", ("tool", "vehicle")),
    ("repair repairs repaired|mend mends mended", "break breaks broken|damage damages damaged", ("tool", "vehicle")),
    ("buy buys bought|purchase purchases purchased", "sell sells sold|trade trades traded", THINGS),
    ("see sees seen|notice notices noticed", "ignore ignores ignored|overlook overlooks overlooked", _ANY),
    ("wash washes washed|rinse rinses rinsed", "stain stains stained|soil soils soiled", THINGS),
)

_INTRANSITIVE: tuple[tuple[str, str | None, str | None], ...] = (
    ("move moves moved", None, "rest"),
    ("rest rests rested", None, "move"),
    ("run runs run|sprint sprints sprinted", "move", None),
    ("walk walks walked|stroll strolls strolled", "move", None),
    ("swim swims swum|paddle paddles paddled", "move", None),
    ("jump jumps jumped|leap leaps leapt", "move", None),
    ("sleep sleeps slept|slumber slumbers slumbered", "rest", None),
    ("sit sits sat|lounge lounges lounged", "rest", None),
    ("arrive arrives arrived|come comes come", None, "leave"),
    ("leave leaves left|depart departs departed", None, "arrive"),
    ("laugh laughs laughed|giggle giggles giggled", None, "cry"),
    ("cry cries cried|weep weeps wept", None, "laugh"),
)

_ADJECTIVES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("big large", "small little", KINDS),
    ("old aged", "young youthful", ANIMATE),
    ("fast quick", "slow sluggish", ("person", "animal", "vehicle")),
    ("happy glad", "sad unhappy", ANIMATE),
    ("strong sturdy", "weak feeble", ("person", "animal", "tool")),
    ("rich wealthy", "poor needy", ("person",)),
    ("quiet silent", "loud noisy", ("person", "animal", "vehicle")),
    ("clean spotless", "dirty filthy", KINDS),
)
COLOURS = ("red", "blue", "green", "white", "black")

PLACES = {
    "village": ("house home", "shop store", "garden yard", "forest wood", "school", "bridge", "market", "mill"),
    "shore": ("harbour port", "island isle", "beach coast", "lighthouse", "pier dock", "reef", "cave", "lagoon"),
}
PREPOSITIONS = ("near", "behind", "in", "outside")
ADVERBS = ("today", "now", "often", "daily")

NAMES = {
    "he": ("john", "peter", "david", "mark", "paul", "tom", "simon", "henry"),
    "she": ("mary", "anna", "lucy", "emma", "jane", "kate", "sarah", "alice"),
}
REFLEXIVES = {"he": "himself", "she": "herself", "it": "itself", "they": "themselves"}
SINGULAR_DETERMINERS = ("the", "a", "this", "that", "every", "no")
PLURAL_DETERMINERS = ("the", "these", "those", "all", "some", "two", "three", "four")
NUMBERS = ("two", "three", "four")

POSITIVE = tuple("good great brilliant charming delightful funny clever fresh graceful superb gripping lively".split())
NEGATIVE = tuple("bad awful dull boring clumsy stale tedious terrible shallow messy bleak lazy".split())
REVIEWED = tuple("film movie story plot script ending music dialogue cast acting scenery direction".split())
INTENSIFIERS = tuple("very really quite rather truly".split())

# For pronoun resolution: a verb and a trait show whom the reason is about.
TRAITS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    # verb key, traits of its subject, traits of its object
    ("help", ("kind", "generous", "strong"), ("weak", "poor", "lost")),
    ("praise", ("polite", "generous", "grateful"), ("brave", "skilful", "honest")),
    ("blame", ("strict", "bitter", "unfair"), ("careless", "late", "rude")),
    ("avoid", ("shy", "afraid", "timid"), ("angry", "rude", "dangerous")),
    ("follow", ("lost", "curious", "lonely"), ("famous", "wise", "skilful")),
    ("guide", ("wise", "skilful", "kind"), ("lost", "blind", "confused")),
    ("chase", ("angry", "dangerous", "jealous"), ("guilty", "afraid", "late")),
)
CONTAINED = tuple("trophy ball statue painting vase clock".split())
CONTAINERS = tuple("suitcase box drawer basket bag chest".split())
TOO_BIG = tuple("big large wide".split())
TOO_SMALL = tuple("small little narrow".split())

CONNECTIVES = tuple("so but also because yes no right wrong bravo alas".split())
FUNCTION_WORDS = tuple(
    """the a an this that these those every all some no two three four is are do does not by and but although that
    who what where which how many there seems looks never hardly more than too because he she it they him her them
    fit fits into ? . , one""".split()
)


def _nouns() -> dict[str, Noun]:
    table: dict[str, Noun] = {}
    for (genre, kind), text in _NOUNS.items():
        for entry in text.split(";"):
            forms = tuple((form.split("/")[0], form.split("/")[1]) for form in entry.split())
            table[forms[0][0]] = Noun(forms[0][0], kind, genre, forms)
    return table


def _hypernyms() -> dict[str, Noun]:
    pairs = {
        kind: tuple((f.split("/")[0], f.split("/")[1]) for f in text.split()) for kind, text in _KIND_NOUNS.items()
    }
    return {kind: Noun(kind, kind, "any", forms) for kind, forms in pairs.items()}


def _verb_forms(text: str) -> tuple[tuple[str, str, str], ...]:
    split = [form.split() for form in text.split("|")]
    return tuple((base, third, participle) for base, third, participle in split)


def _verbs() -> dict[str, Verb]:
    table: dict[str, Verb] = {}
    for left, right, objects in _TRANSITIVE:
        first, second = _verb_forms(left), _verb_forms(right)
        table[first[0][0]] = Verb(first[0][0], first, objects, second[0][0], None)
        table[second[0][0]] = Verb(second[0][0], second, objects, first[0][0], None)
    for text, parent, opposite in _INTRANSITIVE:
        forms = _verb_forms(text)
        table[forms[0][0]] = Verb(forms[0][0], forms, (), opposite, parent)
    return table


def _adjectives() -> dict[str, Adjective]:
    table: dict[str, Adjective] = {}
    for left, right, kinds in _ADJECTIVES:
        first, second = tuple(left.split()), tuple(right.split())
        table[first[0]] = Adjective(first[0], first, second[0], kinds)
        table[second[0]] = Adjective(second[0], second, first[0], kinds)
    table.update({colour: Adjective(colour, (colour,), None, ("animal", *THINGS)) for colour in COLOURS})
    return table


NOUNS = _nouns()
HYPERNYMS = _hypernyms()
VERBS = _verbs()
ADJECTIVES = _adjectives()
NOUNS_OF = {(g, k): tuple(n for n in NOUNS.values() if (n.genre, n.kind) == (g, k)) for g in GENRES for k in KINDS}
TRANSITIVE = tuple(v for v in VERBS.values() if v.objects)
INTRANSITIVE = tuple(v for v in VERBS.values() if not v.objects)
CHILDREN = {p: tuple(v for v in VERBS.values() if v.parent == p) for p in ("move", "rest")}
ADJECTIVES_OF = {kind: tuple(a for a in ADJECTIVES.values() if kind in a.kinds) for kind in KINDS}


def words() -> tuple[str, ...]:
    """Every word of the language, sorted: the tokenizer's vocabulary without its special tokens."""
    found: set[str] = {*FUNCTION_WORDS, *COLOURS, *PREPOSITIONS, *ADVERBS, *REFLEXIVES.values(), *CONNECTIVES}
    found.update(w for noun in (*NOUNS.values(), *HYPERNYMS.values()) for form in noun.forms for w in form)
    found.update(w for verb in VERBS.values() for form in verb.forms for w in form)
    found.update(w for adjective in ADJECTIVES.values() for w in adjective.forms)
    found.update(w for places in PLACES.values() for place in places for w in place.split())
    found.update(w for names in NAMES.values() for w in names)
    found.update((*POSITIVE, *NEGATIVE, *REVIEWED, *INTENSIFIERS, *CONTAINED, *CONTAINERS, *TOO_BIG, *TOO_SMALL))
    found.update(w for _, subject, patient in TRAITS for w in (*subject, *patient))
    return tuple(sorted(found))
