"""English words that near misses are made of: opposites, members of one class, units, quantifiers, verbs.

Only words whose exchange keeps a sentence grammatical, and that have one plain meaning: no `right`, `light`, `present`.
"""

from __future__ import annotations

_OPPOSITES = """
increase decrease | increases decreases | increased decreased | increasing decreasing | higher lower | highest lowest
larger smaller | largest smallest | bigger smaller | biggest smallest | greater smaller | greatest smallest
longer shorter | longest shortest | taller shorter | tallest shortest | faster slower | fastest slowest
warmer cooler | warmest coolest | hotter colder | hottest coldest | hot cold | warm cool
older younger | oldest youngest | stronger weaker | strongest weakest | strong weak | heavier lighter
heaviest lightest | thicker thinner | thick thin | deeper shallower | deepest shallowest | deep shallow | wider narrower
wide narrow | widest narrowest | closer farther | closest farthest | better worse | good bad | easier harder
easy difficult | safe unsafe | dangerous harmless | harmful harmless | healthy unhealthy | legal illegal
possible impossible | true false | correct incorrect | likely unlikely | necessary unnecessary
positive negative | inner outer | internal external | inside outside | above below | before after | northern southern
eastern western | north south | east west | top bottom | minimum maximum | attract repel | attracts repels
expand contract | expands contracts | rises falls | rising falling | gains loses | gained lost | bought sold | win lose
wins loses | full empty | wet dry | alive dead
renewable nonrenewable | predator prey | predators prey | producers consumers | producer consumer
conductor insulator | conductors insulators | metals nonmetals | metal nonmetal | dominant recessive
inherited learned | visible invisible | permanent temporary
public private | early late | earlier later | arrive leave | arrives leaves | accept reject | accepted rejected
allowed forbidden | guilty innocent | rough smooth | fresh stale | cheap expensive
cheaper pricier | rich poor | happy sad | success failure | successful unsuccessful | ancient modern | import export
imports exports | addition subtraction | reliable unreliable | effective ineffective
efficient inefficient | similar different | stable unstable | toxic harmless
"""

_CLASSES = {
    "month": "January February March April June July August September October November December",
    "weekday": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "season": "winter summer autumn",
    "planet": "Mercury Venus Mars Jupiter Saturn Uranus Neptune",
    "continent": "Africa Asia Europe Antarctica Australia",
    "country": "France Germany Italy Spain Portugal Greece Sweden Norway Poland Russia China Japan India Brazil Mexico "
    "Canada Egypt Nigeria Kenya Argentina Chile Peru Ireland Scotland England Switzerland Austria Turkey Iran Iraq",
    "people": "American British French German Italian Spanish Portuguese Greek Swedish Polish Russian Chinese Japanese "
    "Indian Brazilian Mexican Canadian Egyptian Irish Scottish Dutch Korean Turkish",
    "city": "London Paris Berlin Rome Madrid Moscow Tokyo Beijing Chicago Boston Seattle Houston Denver Miami Toronto "
    "Sydney Mumbai Delhi Cairo Vienna Dublin Lisbon Athens Philadelphia Dallas Atlanta",
    "state": "California Texas Florida Ohio Nevada Utah Oregon Georgia Virginia Alaska Hawaii Maine Michigan Illinois",
    "colour": "red yellow green blue purple black brown pink",
    "element": "hydrogen oxygen carbon nitrogen helium iron gold silver copper calcium sodium uranium",
    "states of matter": "solids liquids",
    "rock": "igneous sedimentary metamorphic",
    "organ": "heart liver brain stomach bladder",
    "animals": "mammals reptiles birds amphibians insects",
    "animal": "dog cat horse cow sheep rabbit lion tiger bear wolf",
    "pets": "dogs cats horses cows rabbits chickens ducks goats pigs",
    "fruit": "apples oranges bananas pears grapes lemons peaches cherries strawberries mangoes",
    "water cycle": "evaporation condensation precipitation",
    "heat": "conduction convection radiation",
    "process": "photosynthesis respiration digestion fermentation",
    "sphere": "atmosphere hydrosphere lithosphere biosphere",
    "layer": "crust mantle core",
    "cell part": "nucleus chloroplast mitochondrion vacuole",
    "energy": "electrical mechanical thermal nuclear solar",
    "force": "gravity friction magnetism inertia",
    "kind of body": "planet star comet asteroid moon",
    "plant part": "roots stems leaves flowers seeds",
    "part of a plant": "root stem leaf flower seed",
    "sex": "male female",
    "man": "man woman",
    "men": "men women",
    "child": "boy girl",
    "children": "boys girls",
    "spouse": "husband wife",
    "parent": "mother father",
    "sibling": "brother sister",
    "offspring": "son daughter",
    "offspring of several": "sons daughters",
    "relative": "uncle aunt",
    "ruler": "king queen",
    "language": "Python Java JavaScript Ruby PHP Rust",
    "name": "John Mary James Sarah David Emily Michael Anna Robert Lisa William Laura Daniel Susan Thomas Karen Mark "
    "Paul Julia Peter Linda Kevin Nancy Brian Jenny Jason Rachel Ryan Megan Eric Diana Adam Grace Jack Alice Sam Kate "
    "Tom Lucy Ben Ella Josh Mia Carl Nina Alex Maria",
}

_UNITS = """
inches feet yards miles | inch foot yard mile | millimeters centimeters meters kilometers
millimeter centimeter meter kilometer | mm cm km | seconds minutes hours days weeks months years
second minute hour day week month year | ounces pounds tons | ounce pound ton | milligrams grams kilograms
milligram gram kilogram | mg kg | teaspoons tablespoons cups pints quarts gallons
teaspoon tablespoon cup pint quart gallon | milliliters liters | milliliter liter | Celsius Fahrenheit | cents dollars
KB MB GB TB | kilobytes megabytes gigabytes | mph km/h | watts kilowatts megawatts | thousand million billion
decades centuries | dozen hundred
"""

QUANTIFIERS = {
    "all": "none", "every": "no", "always": "never", "never": "always", "most": "few", "many": "few", "few": "many",
    "often": "rarely", "usually": "rarely", "frequently": "rarely", "rarely": "often", "seldom": "often",
    "everyone": "no one", "everybody": "nobody", "nobody": "everybody",
    "everything": "nothing", "nothing": "everything",
    "half": "twice", "twice": "half", "at least": "at most", "at most": "at least", "more than": "less than",
    "less than": "more than", "fewer than": "more than", "both": "neither",
}  # fmt: skip

# third person singular -> infinitive, of verbs that are rarely nouns
VERBS = {
    "causes": "cause", "makes": "make", "contains": "contain", "becomes": "become", "produces": "produce",
    "provides": "provide", "requires": "require", "allows": "allow", "prevents": "prevent", "includes": "include",
    "happens": "happen", "occurs": "occur", "depends": "depend", "exists": "exist", "helps": "help", "gives": "give",
    "takes": "take", "goes": "go", "comes": "come", "protects": "protect", "absorbs": "absorb",
    "belongs": "belong", "creates": "create", "consists": "consist", "represents": "represent", "refers": "refer",
    "affects": "affect", "believes": "believe", "improves": "improve",
    "reduces": "reduce", "removes": "remove", "transfers": "transfer", "grows": "grow",
    "remains": "remain", "seems": "seem", "appears": "appear", "eats": "eat",
    "has": "have", "orbits": "orbit", "revolves": "revolve",
}  # fmt: skip

NUMBER_WORDS = "zero one two three four five six seven eight nine ten eleven twelve".split()


def _groups(text: str) -> list[list[str]]:
    return [group.split() for line in text.strip().splitlines() for group in line.split("|")]


def _opposites() -> dict[str, str]:
    """word -> its opposite, both ways; of a word that has several the first one given."""
    found: dict[str, str] = {}
    for one, other in _groups(_OPPOSITES):
        found.setdefault(one, other)
        found.setdefault(other, one)
    return found


def _others(groups: list[list[str]]) -> dict[str, list[str]]:
    """word -> the other members of the first group that it is in."""
    found: dict[str, list[str]] = {}
    for group in groups:
        for word in group:
            found.setdefault(word, [other for other in group if other != word])
    return found


OPPOSITES = _opposites()
CLASSMATES = _others([members.split() for members in _CLASSES.values()])
UNITS = _others(_groups(_UNITS))
