"""Short stories from a probabilistic grammar whose entropy is known: the corpus of the shipped checkpoint.

    python tests/reference/stories/stories.py --count 5 --seed 1                     one story a line
    python tests/reference/stories/stories.py --count 5 --seed 1 --json              {"text", "nats"} a line
    python tests/reference/stories/stories.py --count 20000 --seed 1 --stats [--tokenizer FILE]
    python tests/reference/stories/stories.py --count 2000 --seed 1 --check

Story i of a seed depends on the seed and on i alone. Every random choice goes through Teller.pick, which adds -log p of the
choice; nothing is chosen before the word where it shows, so a text determines its choices and the sum is -log p(text).
--check proves that for the stories it draws: a recogniser follows every derivation that a text allows and must find one.
Needs only the standard library; --tokenizer also needs tiktoken and regex.
"""
import argparse
import json
import math
import random
import re
import sys

HE = "Pip Tom Oscar Finn Bruno Hugo Max Felix".split()
SHE = "Mia Lily Ruby Nell Daisy Hazel Wren Greta".split()
PRONOUNS = {name: ("he", "him", "his") for name in HE} | {name: ("she", "her", "her") for name in SHE}

KINDS = ["a fox", "a rabbit", "a bear", "a mouse", "an owl", "a frog", "a hedgehog", "a squirrel", "a badger", "an otter", "a duck", "a cat"]

# What is offered for a field at its first mention; later mentions repeat it.
TABLES = {
    "trait": ["a brave", "a little", "an old", "a shy", "a clever", "a kind", "a proud", "a sleepy", "a merry", "a hungry", "a young", "a curious"],
    "home": ["by the river", "under the old bridge", "in a hollow tree", "on a windy hill", "near the mill", "at the edge of the forest",
             "behind the barn", "beside a quiet pond", "in a small red house", "close to the sea", "in a cave of blue stone", "among the tall reeds"],
    "hobby": ["sing to the birds", "count the clouds", "bake bread", "dance in the rain", "read old maps", "watch the stars", "collect shells",
              "whistle a tune", "pick berries", "tell long jokes", "climb trees", "race the wind", "water the flowers", "jump over puddles",
              "skip stones", "draw funny faces"],
    "when": ["One morning", "One rainy day", "One cold evening", "One summer morning", "One windy night", "One quiet afternoon", "One spring day",
             "One bright day", "One autumn evening", "One day"],
    "colour": ["red", "golden", "blue", "silver", "green", "striped", "yellow", "tiny"],
    "thing": ["scarf", "key", "drum", "kettle", "hat", "bell", "whistle", "basket", "mirror", "lantern", "kite", "ring"],
    "spot": ["under the bed", "behind the door", "in the garden", "in every cupboard", "on the roof", "in the cellar", "beneath the rug", "up the chimney"],
    "way": ["over the hill", "through the woods", "down to the lake", "across the field", "along the stream", "up to the castle", "past the windmill",
            "into the valley", "around the swamp", "to the old well"],
    "nook": ["under a leaf", "behind a stone", "in a bush", "in a puddle", "between two roots", "on a branch", "inside a hollow log", "in the tall grass",
             "next to a mushroom", "in a bird's nest"],
    "treat": ["a plum pie", "a jug of warm milk", "some honey cakes", "a pot of soup", "a bowl of berries", "a loaf of bread", "cheese and apples",
              "a plate of pancakes", "roasted nuts", "a cup of cocoa"],
    "silly": ["a broom", "an old shoe", "a pinecone", "a wet sock", "a bent stick", "a cracked cup", "a turnip", "two feathers"],
    "sack": ["a sack", "a dusty chest", "a big blue bag", "a leather trunk", "the cupboard", "the shed"],
    "weather": ["a great storm", "a strong wind", "heavy snow", "a flood", "a falling branch", "a bolt of lightning"],
    "part": ["roof", "door", "chimney", "window", "fence", "gate", "floor", "stairs"],
    "gear": ["a hammer", "a saw", "a bag of nails", "a ladder", "a pot of glue", "a long rope", "a toolbox", "a wheelbarrow"],
    "guest": ["Sunday", "week", "summer", "full moon", "evening", "holiday"],
    "moral": ["A good friend is worth more than gold.", "It is good to share.", "Nobody is too small to help.", "Kind words cost nothing.",
              "Two heads are better than one.", "What is lost may yet be found."],
}

# A wish, and the one tool that it takes.
WISHES = {
    "cross the lake": "a wooden boat", "mend a torn kite": "a ball of string", "bake a cake": "a bag of flour", "sew a winter coat": "a silver needle",
    "build a tall tower": "a good hammer", "dig a deep well": "an iron spade", "cook a carrot soup": "a copper pot", "write a long letter": "a goose feather",
    "play a slow waltz": "a silver flute", "explore the dark cave": "a bright lamp", "climb the high cliff": "a long rope", "paint the sunset": "a fine brush",
    "pick the highest apples": "a tall ladder", "catch a big fish": "a fishing rod", "find buried treasure": "a secret map", "look at the moon": "a brass telescope",
}

OPENINGS = {
    "Once there was {a trait} {kind} named {name}. {He} lived {home}.": 4,
    "Once upon a time, {a trait} {kind} named {name} lived {home}.": 3,
    "There was once {a trait} {kind} called {name}, who lived {home}.": 2,
    "{name} was {a trait} {kind} who lived {home}.": 3,
    "Long ago, {a trait} {kind} lived {home}. The {kind} was called {name}.": 1,
    "{Home} lived {a trait} {kind} whose name was {name}.": 2,
    "This is the story of {name}, {a trait} {kind} who lived {home}.": 1,
}
HABITS = {
    "": 8,
    " {He} liked to {hobby}.": 2,
    " Every morning {he} would {hobby}.": 2,
    " What {name} loved most was to {hobby}.": 1,
    " Nobody could {hobby} like {name}.": 1,
}

LOST = [" {when}, {his} {colour} {thing} was gone.", " {when}, {name} could not find {his} {colour} {thing}.", " But {name} lost {his} {colour} {thing}.",
        " {when}, {he} woke up and {his} {colour} {thing} was missing."]
LOOKED = {
    "": 4,
    " {He} looked {spot} and {spot2}.": 1,
    " It was not {spot}, and it was not {spot2}.": 1,
    " {name} searched {spot}, then {spot2}, and found only dust.": 1,
}
SAD = {
    "": 5,
    " {name} was very sad.": 1,
    " {He} sat down and cried.": 1,
    " A tear ran down {his} nose.": 1,
    " {He} did not know what to do.": 1,
}
MEET = [" Just then {a kind2} named {name2} came by.", " On the road {he} met {a kind2} called {name2}.",
        " {A kind2} named {name2} heard about it.", " Soon {a kind2} knocked at the door. It was {name2}.", " So {he} went to see {name2}, {a kind2}."]
LOST_TALK = [' "What is wrong?" asked {name2}. "I have lost my {colour} {thing}," said {name}.',
             ' "Why the long face, {name}?" asked {name2}. "My {colour} {thing} is gone," said the {kind}.',
             ' "Have you seen my {colour} {thing}?" asked {name}.',
             ' "Please help me find my {colour} {thing}," said {name}.']
SEARCH = [" Together they went {way}.", " They walked {way} and called out loud.", ' "Let us go {way}," said {name2}, and off they went.',
          " The {kind} and the {kind2} ran {way}."]
FOUND = [" There, {nook}, lay the {colour} {thing}.", " {name2} looked {nook} and saw the {colour} {thing}.", " Something shone {nook}. It was the {colour} {thing}!",
         " {A kind3} sat {nook} and played with the {colour} {thing}."]
THANKS = {
    "": 8,
    ' "Thank you, {name2}!" said {name}.': 1,
    " {name} hugged {name2} and laughed.": 1,
    " To thank {name2}, {name} made {treat}.": 1,
    " Then they shared {treat}.": 1,
    ' "You are a true friend," {name} told {name2}.': 1,
}

WISH = [" {when}, {name} wanted to {wish}.", " {name} had one wish: to {wish}.", " More than anything, {name} dreamed that {he} could {wish}.",
        ' {when}, {name} said, "Today I will {wish}."']
LACK = [" But {he} had no {tool}.", " But for that {he} needed {a tool}.", ' "If only I had {a tool}," {he} said.']
TRIED = {
    "": 4,
    " {He} tried it with {silly}, but it was no use.": 1,
    " First {he} took {silly}. Everybody laughed.": 1,
    " {name} tried {silly} instead, and fell over.": 1,
}
WISH_TALK = [' "What do you need?" asked {name2}. "I need {a tool}," said {name}.', ' "I want to {wish}," said {name}.',
             ' "Can you lend me {a tool}?" asked {name}.', ' "Why do you sigh?" asked {name2}. "I cannot {wish}," said the {kind}.']
GIVEN = [" {name2} opened {sack} and took out {a tool}.", ' {name2} ran {way} to fetch {a tool}.',
         ' "Give me {treat} and you shall have {a tool}," said {name2}. So they traded.', " {name2} looked into {sack}, and there was {a tool}."]
DONE = [" With the {tool}, {name} could {wish} at last.", " Now {name} could {wish}, and {name2} helped {him}.", " {name} used the {tool} to {wish} that very day."]

FIND = [" {when}, {name} found a {colour} {thing} {nook}.", " {when}, {name} went {way} and saw a {colour} {thing} {nook}.", " A {colour} {thing} lay {nook}, and {name} picked it up."]
KEEP = {
    "": 4,
    " {He} wanted to keep it forever.": 1,
    ' "How pretty it is!" said {name}.': 1,
    " It was the nicest thing {he} had ever seen.": 1,
}
OWNER = [" On the way home {he} met {a kind2} named {name2}, who was crying.", " Then {he} heard {a kind2} crying. It was {name2}.",
         " But soon {a kind2} named {name2} came running."]
GIFT_TALK = [' "I have lost my {colour} {thing}," said {name2}.', ' "Has anybody seen my {colour} {thing}?" cried {name2}.',
             ' "What is wrong?" asked {name}. "My {colour} {thing} is gone," said the {kind2}.']
DOUBT = {
    "": 4,
    " {name} thought about it for a while.": 1,
    " {name} held the {thing} tight. Then {he} nodded.": 1,
    " For a moment {name} said nothing.": 1,
}
RETURNED = [' "Here it is," said {name}, and gave {him2} the {colour} {thing}.', " {name} gave the {colour} {thing} back to {name2}.",
            ' "Do not cry," said the {kind}. "I found it {nook}."']
GLAD = [" {name2} was so glad that {he2} gave {name} {treat}.", " {name2} danced for joy.", " To say thank you, {name2} brought {treat}."]

STORM = [" {when}, {weather} broke the {part} of {his} house.", " {when}, {weather} came and the {part} of the house fell apart."]
STORM_TALK = [' "I will help you mend the {part}," said {name2}.', ' "My {part} is broken," said {name}.',
              ' "What happened to your {part}?" asked the {kind2}.']
GEAR = [" {name2} ran home and came back with {a gear}.", " In {sack} they found {a gear}.", " Luckily {name2} had brought {a gear}."]
WORK = [" With the {gear} they worked all day.", " They used the {gear} and sang as they worked.", " {name} held the {gear}, and {name2} did the rest.",
        " They worked until the stars came out."]
MENDED = [" In the end the {part} was as good as new.", " The new {part} was better than the old one.", " Soon the {part} was whole again."]

# {it} is what the story was about: the thing, the tool or the gear. {there} is {home} again.
LOST_ENDINGS = [" That night {name} slept {there} with the {it} beside {him}.", " From that day on, {name} kept the {it} under {his} pillow {there}.",
                " {name} and {name2} are still friends, and the {it} is safe {there}.",
                " If you are ever {there}, ask the {kind} to show you the {it}.", " So {name} the {kind} put the {it} back on its shelf {there}."]
WISH_ENDINGS = [" That night {name} slept {there}, and the {it} leaned against the wall.",
                " From that day on, {name} kept the {it} {there}, and {name2} came to visit every {guest}.",
                " {name} and {name2} are still friends, and the {it} can still be seen {there}.",
                " If you are ever {there}, ask the {kind} to show you the {it}.", " So {name} the {kind} went back home, and the {it} found its place {there}."]
GIFT_ENDINGS = [" That night {name} slept {there} and dreamed of the {it}.", " From that day on, {name2} and the {it} came to visit every {guest} {there}.",
                " {name} and {name2} are still friends, and they often sit {there} and look at the {it}.",
                " If you are ever {there}, ask the {kind} about the {it}.", " So {name} the {kind} gave up the {it} and found a friend {there}."]
HOBBY_ENDING = " Then {name} went off to {hobby}, as happy as {a kind} can be."
CLOSINGS = {"": 5, " The end.": 2, " {moral}": 1}

PLOTS = {"lost": 4, "wish": 4, "gift": 3, "storm": 2}


class Teller:
    """One derivation. choose(weights) gives an index; nats is the information of all choices so far."""

    def __init__(self, choose, hear=lambda text: None):
        self.choose, self.hear = choose, hear
        self.facts, self.text, self.nats = {}, "", 0.0

    def pick(self, options):
        """options: a list (all alike) or a dictionary from option to whole weight."""
        weights = list(options.values()) if isinstance(options, dict) else [1] * len(options)
        i = self.choose(weights)
        self.nats -= math.log(weights[i] / sum(weights))
        return list(options)[i]

    def say(self, text):
        self.text += text
        self.hear(self.text)

    def tell(self, templates):
        """Picks a template and says it; a field is picked when it is first reached."""
        for part in re.split(r"(\{[^}]*\})", self.pick(templates)):
            self.say(self.field(part[1:-1]) if part.startswith("{") else part)

    def field(self, key):
        if key[0].isupper():  # {Home}, {He}, {A kind2}: at the start of a sentence
            word = self.field(key[0].lower() + key[1:])
            return word[0].upper() + word[1:]
        article, _, noun = key.rpartition(" ")
        hero = key.rstrip("2")
        if hero in ("he", "him", "his"):
            return PRONOUNS[self.facts["name" + key[len(hero):]]][("he", "him", "his").index(hero)]
        if noun == "there":
            return self.facts["home"].replace(" a ", " the ")
        if noun == "it":
            return self.field("colour") + " " + self.field("thing") if "thing" in self.facts else self.field("tool" if "tool" in self.facts else "gear")
        if noun not in self.facts:
            self.facts[noun] = self.pick(self.options(noun))
        if noun == "wish":
            self.facts["tool"] = WISHES[self.facts["wish"]]
        word = self.facts[noun]
        bare = not article and noun.rstrip("23") in ("kind", "tool", "gear")  # {a kind} keeps its article, {kind} loses it
        return word.split(" ", 1)[1] if bare else word

    def options(self, noun):
        """A second or third of a kind differs from those before."""
        base = noun.rstrip("23")
        table = {"name": HE + SHE, "kind": KINDS, "wish": list(WISHES)}.get(base) or TABLES[base]
        return [option for option in table if option not in (self.facts.get(base), self.facts.get(base + "2"))]


def tell_story(teller):
    teller.tell(OPENINGS)
    teller.tell(HABITS)
    plot = teller.pick(PLOTS)
    scenes = {"lost": [LOST, LOOKED, SAD, MEET, LOST_TALK, SEARCH, FOUND, THANKS, LOST_ENDINGS],
              "wish": [WISH, LACK, TRIED, MEET, WISH_TALK, GIVEN, DONE, THANKS, WISH_ENDINGS],
              "gift": [FIND, KEEP, OWNER, GIFT_TALK, DOUBT, RETURNED, GLAD, GIFT_ENDINGS],
              "storm": [STORM, MEET, STORM_TALK, GEAR, WORK, MENDED, THANKS, WISH_ENDINGS]}[plot]
    for scene in scenes:
        teller.tell(scene)
    if "hobby" in teller.facts:
        teller.tell({"": 2, HOBBY_ENDING: 1})
    teller.tell(CLOSINGS)
    return teller


def story(seed, index):
    """(text, nats)"""
    rng = random.Random(f"{seed}/{index}")

    def choose(weights):
        u = rng.random() * sum(weights)
        for i, weight in enumerate(weights):
            u -= weight
            if u < 0:
                return i
        return len(weights) - 1

    teller = tell_story(Teller(choose))
    return teller.text, teller.nats


class Refused(Exception):
    """The derivation says something that the text does not."""


class Open(Exception):
    """The derivation needs a choice that is not made yet, of so many."""


def derivations(text):
    """The information of every derivation of a text, by following all choices that agree with it."""

    def hear(said):
        if not text.startswith(said):
            raise Refused

    found, waiting = [], [[]]
    while waiting:
        made = waiting.pop()
        ahead = iter(made)

        def choose(weights):
            i = next(ahead, None)
            if i is None:
                raise Open(len(weights))
            return i

        try:
            teller = tell_story(Teller(choose, hear))
        except Refused:
            continue
        except Open as choice:
            waiting += [made + [i] for i in range(choice.args[0])]
            continue
        if teller.text == text:
            found.append(teller.nats)
    return found


def print_stats(stories, tokenizer):
    nats = [n for _, n in stories]
    mean = sum(nats) / len(nats)
    error = math.sqrt(sum((n - mean)**2 for n in nats) / max(1, len(nats) - 1) / len(nats))
    characters = sum(len(text) for text, _ in stories)
    print(f"stories {len(stories)}, different {len({text for text, _ in stories})}")
    print(f"nats a story {mean:.3f} (standard error {error:.3f}), a character {sum(nats) / characters:.5f}, words a story "
          f"{sum(len(text.split()) for text, _ in stories) / len(stories):.1f}")
    if tokenizer:
        from bpe import tokenizer_of

        encoding = tokenizer_of(tokenizer)
        lengths = [len(tokens) + 1 for tokens in encoding.encode_ordinary_batch([text for text, _ in stories])]
        print(f"tokens a story, <|endoftext|> counted: mean {sum(lengths) / len(lengths):.1f}, {min(lengths)} to {max(lengths)}; "
              f"nats a token {sum(nats) / sum(lengths):.5f}")


def check(stories):
    """Exits unless every text has one derivation, of the information that the generator counted."""
    for i, (text, nats) in enumerate(stories):
        found = derivations(text)
        if len(found) != 1 or abs(found[0] - nats) > 1e-9:
            sys.exit(f"story {i}: {len(found)} derivations of {found} nats, drawn with {nats}: {text}")
    print(f"{len(stories)} stories, one derivation each")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--seed", type=lambda text: int(text) if text.isdigit() else text, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--stats", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--tokenizer")
    args = parser.parse_args()
    stories = (story(args.seed, i) for i in range(args.count))
    if args.stats:
        print_stats(list(stories), args.tokenizer)
    elif args.check:
        check(list(stories))
    else:
        for text, nats in stories:
            print(json.dumps({"text": text, "nats": nats}) if args.json else text)


if __name__ == "__main__":
    main()
