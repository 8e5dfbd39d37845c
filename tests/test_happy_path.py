"""What the main job costs when nothing goes wrong."""

from tests.world import World


def test_the_happy_path_costs_three_commits_two_stripe_calls_and_one_task() -> None:
    """3 commits, no look-up, no query, create and confirm, 1 create_task: nothing that safety does not need."""
    world = World()
    customer = world.customer
    world.counts.clear()

    told = world.create(customer=customer)

    assert told is not None
    assert told.status == 200
    assert told.body["status"] == "succeeded"
    assert world.counts == {"insert": 1, "update": 2, "create": 1, "confirm": 1, "create_task": 1}
    assert world.money_moved() == [1999]


def test_afterwards_the_task_and_each_event_cost_one_look_up() -> None:
    """The first task finds the charge done; an event that proves nothing new writes nothing."""
    world = World()
    world.create()
    world.counts.clear()

    world.settle()

    deliveries = sum(told.request.startswith("POST charge") for told in world.told) - 1
    events = sum(told.request.startswith("POST webhook") for told in world.told)
    assert deliveries == 1
    assert events >= 1
    assert set(world.counts) == {"get"}
    assert world.counts["get"] <= deliveries + events


def test_the_task_is_created_while_stripe_is_asked_and_not_before_the_charge_is_recorded() -> None:
    """The insert comes first; in production the task's creation overlaps the calls to Stripe."""
    world = World()
    world.create()

    assert world.trace.index("insert Charge") < world.trace.index("create_task")
