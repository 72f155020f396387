"""The comparison of gradient rules, small: equal losses, ordered memory, fewer evaluations."""

import pytest

from experiments.gradients import Comparison, run, table


@pytest.mark.slow
def test_every_rule_trains_alike():
    result = run(Comparison(iterations=30, batch=16, width=24))
    rows = {(r["model"], r["rule"]): r for r in result["rows"]}
    for (model, rule), r in rows.items():
        direct = rows[model, "Direct()"]
        assert r["last"] < r["first"]
        assert r["deviation"] < (1e-2 if rule.startswith("Backsolve") else 1e-8)
        assert rule == "Direct()" or r["kept"] < 0.5 * direct["kept"]
        assert rule == "Direct()" or r["peak"] < direct["peak"]
    semi, full = (
        sum(r["backward"] for (_, rule), r in rows.items() if rule == name)
        for name in ("Backsolve()", "Backsolve(seminorm=False)")
    )
    assert semi < full
    text = table(result)
    print(f"\n{text}")
    assert len(text.splitlines()) == 2 + len(rows)
