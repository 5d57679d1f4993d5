"""The prompt grammar, and layouts that keep every relation of a scene graph."""
import itertools
import random

import pytest

from lodestar.guidance.attention.phrases import NAMES, conjunctions, noun_phrases, statements
from lodestar.guidance.attention.scene_graph import SceneGraphLayout, layout, parse, sentence, violations
from lodestar.guidance.method import BadInput

pytestmark = pytest.mark.method("LodestarSceneGraphLayout")


@pytest.mark.parametrize("text,found", (
    ("a red car and a white sheep", ["red car", "white sheep"]),
    ("a cat sitting on the wooden table, next to three blue cups", ["cat", "wooden table", "blue cups"]),
    ("two dogs in front of an old house", ["dogs", "old house"]),
    ("(red:1.3) circle above a (large blue:0.8) square", ["red circle", "large blue square"]),
    ("portrait of a woman wearing a green dress; golden hour, film grain", ["portrait", "woman", "green dress", "golden hour", "film grain"]),
    ("a small cyan cross to the left of a large gray triangle", ["small cyan cross", "large gray triangle"]),
    ("", []), ("the", [])))
def test_noun_phrases(text, found):
    assert noun_phrases(text) == found


def test_statements():
    assert statements("a red ball left of a blue cube and a cat on the cube") == [("red ball", "left of", "blue cube"), ("cat", "on", "cube")]
    assert statements("a lamp; a book next to the lamp.\na dog, a bone") == [("lamp", None, None), ("book", "next to", "lamp"), ("dog", None, None), ("bone", None, None)]
    assert statements("a sun above a house above a lawn") == [("sun", "above", "house"), ("house", "above", "lawn")]
    assert statements("a cat to the right of a mat") == [("cat", "right of", "mat")]
    assert conjunctions("a and b") and not conjunctions("a band")


def test_the_same_thing_is_meant_again():
    names, _, relations = parse("a red ball left of a blue cube; a cat on the cube; the cat near a ball")
    assert names == ["red ball", "blue cube", "cat"] and relations == [("red ball", "left of", "blue cube"), ("cat", "on", "blue cube"), ("cat", "next to", "red ball")]


def boxes(text, **k):
    found, said = SceneGraphLayout(text=text, **k).validate().regions()
    return {r.words: r.boxes[0] for r in found}, said


@pytest.mark.parametrize("relation", NAMES)
def test_each_relation_holds(relation):
    found, said = boxes(f"a cat {relation} a mat")
    (ax, ay, aw, ah), (bx, by, bw, bh) = found["cat"], found["mat"]
    assert all(0 <= x and 0 <= y and x + w <= 1 and y + h <= 1 for x, y, w, h in found.values())
    tests = {"left of": ax + aw < bx, "right of": bx + bw < ax, "above": ay + ah < by, "below": by + bh < ay, "on": abs(ay + ah - by) < 0.03,
             "inside": bx - 0.02 <= ax and ax + aw <= bx + bw + 0.02 and by - 0.02 <= ay and ay + ah <= by + bh + 0.02,
             "next to": ax + aw < bx or bx + bw < ax, "in front of": ay + ah / 2 > by + bh / 2, "behind": ay + ah / 2 < by + bh / 2}
    assert tests[relation] and said == f"a cat {relation} a mat"


def test_random_graphs_that_have_a_layout_are_solved():
    """Relations read off a random arrangement of four things can hold; at most one in twenty is not found."""
    rng, missed = random.Random(0), 0
    for trial in range(20):
        places = {n: (rng.random(), rng.random()) for n in "abcd"}
        rows = []
        for p, q in itertools.combinations("abcd", 2):
            dx, dy = places[q][0] - places[p][0], places[q][1] - places[p][1]
            if rng.random() < 0.6:
                rows.append((p, ("left of" if dx > 0 else "right of") if abs(dx) > abs(dy) else ("above" if dy > 0 else "below"), q))
        things, worst = layout(list("abcd"), {}, rows, 0.0, 0.02, trial)
        missed += worst is not None
        by = {t.name: t for t in things}
        if worst is None:
            assert all(violations(by[a], r, by[b], 0.02)[0][2] <= 0.015 for a, r, b in rows)
    assert missed <= 1


def test_free_things_keep_apart_and_layouts_are_deterministic():
    found, said = boxes("a dog, a cat, a bird and a fish")
    for (ax, ay, aw, ah), (bx, by, bw, bh) in itertools.combinations(found.values(), 2):
        assert min(ax + aw, bx + bw) - max(ax, bx) < 0.02 or min(ay + ah, by + bh) - max(ay, by) < 0.02
    assert boxes("a dog, a cat, a bird and a fish")[0] == found and boxes("a dog, a cat, a bird and a fish", seed=5)[0] != found
    assert said == "a dog and a cat and a bird and a fish"


def test_sizes_and_prompts_of_json():
    found, _ = SceneGraphLayout(text='{"objects": ["egg", {"name": "hen", "size": 0.5, "prompt": "a brown hen"}, {"name": "leaf", "size": "small"}], '
                                     '"relations": [["egg", "left of", "hen"]]}').regions()
    egg, hen, leaf = found
    assert hen.boxes[0][2] > 1.2 * egg.boxes[0][2] > leaf.boxes[0][2] and hen.prompt == "a brown hen" and egg.prompt == "an egg"
    small, _ = boxes("a small ball left of a large ball")
    assert small["small ball"][2] < small["large ball"][2]
    assert sentence(["a", "b"], [("a", "on", "b"), ("b", "left of", "a")]) == "an a on a b and the b left of the a"


@pytest.mark.parametrize("text,words", (
    ("a cat left of a dog; the dog left of the cat", "cannot hold together"),
    ("", "Describe things"),
    ("a cat on", "thing on each side"),
    ("a cat above the cat", "no relation to itself"),
    ("{", "No valid JSON"),
    ('{"things": []}', "'things'"),
    ('{"objects": [3]}', r"objects\[0\]"),
    ('{"objects": ["a"], "relations": [["a", "left of", "b"]]}', r"relations\[0\] = 'b'.*no such object"),
    ('{"objects": ["a", "b"], "relations": [["a", "kisses", "b"]]}', r"relations\[0\] = 'kisses'.*left of"),
    ('{"objects": [{"name": "a", "size": 3}]}', r"objects\[0\].size")))
def test_refusals(text, words):
    with pytest.raises(BadInput, match=f"(?s)Scene Graph Layout.*{words}"):
        SceneGraphLayout(text=text).regions()
