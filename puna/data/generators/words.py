"""Names, things and places that generated text draws from."""

_NAMES = """
Ada Adam Alba Alex Amir Ana Anton Aya Ben Bella Carlo Carmen Chen Clara Dan Dina Eli Ella
Emil Emma Erik Eva Felix Finn Grace Hana Hugo Ida Ines Ivan Jack Jana Jonas Julia Kai Kofi Lara Leo
Lena Lila Luca Lucy Maja Marco Maria Max Mei Mia Milo Mina Nadia Nina Noah Nora Olga Omar Oscar Paul
Petra Rosa Ruby Sam Sara Sofia Tara Theo Tom Vera Yuki Zoe"""
_THINGS = """
apples pears plums figs lemons oranges cherries nuts eggs cakes books pens pencils
stamps shells stones coins cards marbles buttons beads flowers candles balls toys stickers"""

_ANIMALS = """
cat dog fox hen goat duck horse llama mouse owl rabbit sheep turtle crow
"""
PLACES = (
    "the market",
    "the river",
    "the forest",
    "the old mill",
    "the harbour",
    "the school",
    "the library",
    "the garden",
    "the hill behind the village",
    "the station",
    "the lake",
    "the bakery",
    "the bridge",
    "the park",
)
_DAYS = """
Monday Tuesday Wednesday Thursday Friday Saturday Sunday
"""
WEATHER = (
    "the sun was shining",
    "it was raining",
    "a cold wind blew",
    "the snow lay deep",
    "it was warm",
    "thick fog covered the fields",
    "the sky was grey",
    "the stars were bright",
)
TREASURES = (
    "red kite",
    "silver key",
    "wooden boat",
    "blue scarf",
    "small drum",
    "old map",
    "round mirror",
    "brass bell",
    "green umbrella",
    "paper lantern",
    "yellow hat",
    "music box",
    "warm coat",
    "glass bead",
)

FRUITS = ("pear", "plum", "fig", "lemon", "cherry", "banana", "melon", "peach", "mango", "grape")
TOYS = ("kite", "ball", "doll", "puzzle", "boat", "train", "robot", "balloon", "yo-yo", "rocket")
INSTRUMENTS = ("drum", "flute", "piano", "violin", "guitar", "trumpet", "harp", "cello", "bell")
COLOURS = ("red", "blue", "green", "yellow", "black", "white", "brown", "pink", "purple", "grey")

NAMES = tuple(_NAMES.split())
THINGS = tuple(_THINGS.split())
ANIMALS = tuple(_ANIMALS.split())
DAYS = tuple(_DAYS.split())
