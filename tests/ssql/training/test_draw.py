from collections import Counter

from ssql.training.draw import draw_bit_width


def test_is_a_function_of_seed_and_step():
    draws = [draw_bit_width(3, step) for step in range(50)]
    assert draws == [draw_bit_width(3, step) for step in range(50)]
    assert draws != [draw_bit_width(4, step) for step in range(50)]


def test_covers_the_published_ranges_evenly():
    draws = [draw_bit_width(0, step) for step in range(7000)]
    weights, activations = Counter(d.weight for d in draws), Counter(d.activation for d in draws)
    assert sorted(weights) == [2, 3, 4, 5, 6, 7, 8]
    assert sorted(activations) == [4, 5, 6, 7, 8]
    assert min(weights.values()) > 850
    assert min(activations.values()) > 1250
