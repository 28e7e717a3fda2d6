from merge._toy import body, close, look, trees, vector

from anabranch.core.names import make

F = body(3, 4, 2)


def test_it_finds_the_best_point_of_the_cone():
    a, b = trees(F, 2)
    mixed = 0.8 * vector(a) + 0.2 * vector(b)
    target = {s: {n: 1.5 * (0.8 * t + 0.2 * b[s][n]) for n, t in p.items()} for s, p in a.items()}
    got = make("merge", {"self_positioning": {"steps": 400, "lr": 0.02}})([a, b], look(F, [target, target]))
    close(vector(got), 1.5 * mixed, 2e-3)


def test_it_starts_in_the_middle_at_the_mean_length_and_never_ends_worse():
    a, b = trees(F, 2)
    start = vector(a) + vector(b)
    start = start / start.norm() * (vector(a).norm() + vector(b).norm()) / 2
    still = {s: {n: 0 * t for n, t in p.items()} for s, p in a.items()}
    eye = look(F, [a, still])
    got = make("merge", {"self_positioning": {"steps": 1, "lr": 1e-9}})([a, b], eye)
    close(vector(got), start, 1e-5)
    far = make("merge", {"self_positioning": {"steps": 3, "lr": 50.0}})([a, b], eye)  # steps that overshoot are not kept
    assert eye.losses(far).mean() <= eye.losses(got).mean() + 1e-6


def test_tasks_count_equally_however_much_data_they_have():
    a, b = trees(F, 2)
    got = make("merge", {"self_positioning": {"steps": 400, "lr": 0.02}})([a, b], look(F, [a, b]))
    close(vector(got), (vector(a) + vector(b)) / 2, 2e-3)
