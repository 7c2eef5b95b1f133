"""Turns, medians and ratios."""

from benchmarks.turns import in_turns, table


def test_turns():
    calls = []

    def timed(name):
        def call():
            calls.append(name)
            return float(len(calls))

        return call

    assert in_turns({"a": timed("a"), "b": timed("b")}, rounds=2) == {"a": [3.0, 5.0], "b": [4.0, 6.0]}
    assert calls == ["a", "b"] * 3


def test_ratios_are_of_medians():
    lines = table({"ours": [3.0, 1.0, 2.0], "peer": [4.0, 4.0, 100.0]}, "peer").splitlines()[-2:]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert cells[0] == ["ours", "2.000", "1.500", "2.500", "0.500"]
    assert cells[1] == ["peer", "4.000", "4.000", "52.000", "1.000"]
