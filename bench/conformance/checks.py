"""What every algorithm must keep to, as statements that hold or say why not.

Each check takes a `Subject` and raises `ContractError` with what is wrong. `bench check` runs them all; in tests:

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_my_algorithm_keeps_the_contract(check):
        check(subjects("my_algorithm.py")[0])
"""

from __future__ import annotations

from collections.abc import Callable

from bench.conformance import choices, training
from bench.conformance.cases import Subject

CHECKS: tuple[Callable[[Subject], None], ...] = (
    choices.a_plan_is_a_forest_with_the_claimed_leaves,
    choices.a_prompts_plan_is_the_same_alone_or_among_others,
    choices.a_shift_of_all_rewards_changes_no_advantage,
    choices.advantages_sum_to_zero_where_it_claims_so,
    choices.a_better_image_has_no_smaller_advantage,
    choices.better_images_below_a_node_do_not_lower_its_advantage,
    choices.equal_rewards_teach_nothing,
    choices.a_selection_is_in_range,
    choices.every_slot_weighs_the_same,
    choices.failed_leaves_count_for_nothing,
    choices.the_same_context_gives_the_same_choices,
    choices.choices_change_no_value_they_are_given,
    choices.a_plan_follows_its_settings,
    choices.memory_is_json,
    training.the_first_update_is_on_policy,
    training.sharing_a_pass_changes_no_gradient,
    training.later_updates_stay_finite,
    training.a_ratio_beyond_the_clip_range_stops_what_it_pushes,
    training.training_follows_the_advantage,
    choices.a_cell_is_what_its_record_says,
    choices.what_a_reader_must_know_is_there,
    choices.its_file_is_short,
)
"""Each raises `ContractError`, or `InputError` where an arm has no plan at all."""
