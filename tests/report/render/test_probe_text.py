"""What the terminal says of geometry, relearning and recovery is what their files hold."""

from gradroute.report.render.probe_text import geometry_text, recover_text, relearn_text


def curve(rate, reached, shown=0):
    return {
        "learning_rate": rate,
        "steps_to_threshold": reached,
        "max_steps": 60,
        "points": [{"step": 0, "shown": shown, "n": 64}],
    }


def relearned(kept_mode, *curves):
    return {
        "behavior": "caps",
        "kept_mode": kept_mode,
        "examples": 64,
        "threshold": 0.5,
        "curves": list(curves),
    }


def lines_of(text):
    return {line.split()[0]: line for line in text.splitlines() if line}


def test_steps_stand_under_their_learning_rate_and_what_never_came_back_says_so():
    text = relearn_text(
        [
            ("routed", relearned("bad_ablated", curve(0.0013, 6), curve(0.004, 3))),
            ("clean", relearned("full", curve(0.004, 7), curve(0.0013, None))),
            ("filter", relearned("full", curve(0.004, 0, 38), curve(0.0013, 0, 38))),
        ]
    )
    found = lines_of(text)
    assert found["routed"].index("3 (at 0.004)") < found["routed"].index("6 (at 0.0013)")
    assert "not in 60 (at 0.0013)" in found["clean"]
    assert "38 of 64" in found["filter"] and found["filter"].count("there already") == 2
    assert "64 examples" in text and "50 %" in text


def geometry(cosine):
    keys = ("mean_absolute_cosine", "mean_cos2_A", "mean_cos2_B")
    return {
        "summary": dict(zip(keys, (cosine, 0.19, 0.25), strict=True)),
        "random": {key: {"mean": 0.0037} for key in keys},
    }


def test_every_mean_stands_beside_that_of_random_updates():
    text = geometry_text([("routed", True, geometry(0.112)), ("plain", False, geometry(None))])
    found = lines_of(text)
    assert "0.112 (0.0037)" in found["routed"] and "- (0.0037)" in found["plain"]
    assert "name one too" not in text
    assert "name one too" in geometry_text([("routed", True, geometry(0.1))])


def test_recovery_shows_before_and_after_and_what_came_back_of_the_cost():
    def cell(rate, normal):
        shown = None if rate is None else {"mean": rate, "lower": 0.0, "upper": 0.03, "n": 128}
        return {"rate": shown, "normal_loss": normal, "behavior_loss": None}

    record = {
        "steps": 50,
        "learning_rate": 4e-4,
        "examples": 256,
        "mode": "bad_ablated",
        "before": {"bad_ablated": cell(0.0, 0.659), "full": cell(0.59, 0.637)},
        "after": {"bad_ablated": cell(0.01, 0.649), "full": cell(None, 0.638)},
    }
    text = recover_text("mine", "caps", record)
    assert "mine: 50 steps at learning rate 0.0004 on 256 known-good examples" in text
    assert "-0.010 nats by the tune; ablation had cost +0.022" in text
    assert "59 % [0, 3] of 128" in text
    record["after"]["bad_ablated"]["normal_loss"] = None
    assert "nats by the tune" not in recover_text("mine", "caps", record)
