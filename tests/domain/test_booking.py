"""The rules of a schedule, by example and by the thousand."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, time, timedelta
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.availability import Availability, Rule
from domain.booking import REJECTIONS, Effect, Rejection, Schedule, decide, expires_at
from domain.commands import (
    Accept,
    AddSlot,
    Book,
    Cancel,
    ChangeSlot,
    Command,
    Complete,
    Envelope,
    Expire,
    ExtendHorizon,
    NoShow,
    Refuse,
    Reschedule,
    SetAvailability,
    WithdrawSlot,
)
from domain.schedule import AppointmentStatus, Interval, Limits, Patient, Slot, SlotStatus
from tests.values import HOUR, NOW, a_doctor, a_schedule, a_slot, an_appointment, sent_by, sent_by_time

S = AppointmentStatus
MINUTE = timedelta(minutes=1)


def a_patient() -> Patient:
    return Patient(a_doctor().id)


def effect_of(envelope: Envelope, command: Command, schedule: Schedule) -> Effect:
    decision = decide(envelope, command, schedule)
    assert isinstance(decision, Effect), decision
    schedule.apply(decision)
    return decision


def rejection_of(envelope: Envelope, command: Command, schedule: Schedule) -> str:
    decision = decide(envelope, command, schedule)
    assert isinstance(decision, Rejection), decision
    assert decision.detail
    return decision.code


class TestBooking:
    def test_a_booked_slot_is_held_by_a_request_at_the_price_of_now(self) -> None:
        doctor, patient = a_doctor(), a_patient()
        slot = a_slot(doctor)
        schedule = a_schedule([doctor], [patient], [slot])
        effect = effect_of(sent_by(patient), Book(slot.id, "dor de cabeça", 25000), schedule)
        (appointment,) = effect.appointments
        assert (appointment.status, appointment.price, appointment.during) == (S.REQUESTED, 25000, slot.during)
        assert appointment.texts.notes == "dor de cabeça"
        assert schedule.slots[slot.id].status is SlotStatus.BOOKED
        assert [(each.kind, each.person_id) for each in effect.notices] == [("requested", doctor.id)]
        assert [step.status for step in effect.transitions] == [S.REQUESTED]

    def test_a_slots_own_price_comes_before_its_doctors(self) -> None:
        doctor, patient = a_doctor(), a_patient()
        slot = a_slot(doctor, price=9900)
        effect = effect_of(sent_by(patient), Book(slot.id), a_schedule([doctor], [patient], [slot]))
        assert effect.appointments[0].price == 9900

    def test_the_second_to_ask_finds_the_slot_taken(self) -> None:
        doctor, first, second = a_doctor(), a_patient(), a_patient()
        slot = a_slot(doctor)
        schedule = a_schedule([doctor], [first, second], [slot])
        effect_of(sent_by(first), Book(slot.id), schedule)
        assert rejection_of(sent_by(second), Book(slot.id), schedule) == "slot_taken"

    @pytest.mark.parametrize(
        ("starts_at", "code"),
        [
            (NOW - MINUTE, "slot_in_past"),
            (NOW, "slot_in_past"),
            (NOW + 2 * HOUR - MINUTE, "outside_booking_window"),
            (NOW + timedelta(days=60) + MINUTE, "outside_booking_window"),
        ],
    )
    def test_a_slot_outside_the_booking_window_is_not_booked(self, starts_at: datetime, code: str) -> None:
        doctor, patient = a_doctor(), a_patient()
        slot = a_slot(doctor, starts_at)
        assert rejection_of(sent_by(patient), Book(slot.id), a_schedule([doctor], [patient], [slot])) == code

    @pytest.mark.parametrize("starts_at", [NOW + 2 * HOUR, NOW + timedelta(days=60)])
    def test_the_edges_of_the_booking_window_are_inside(self, starts_at: datetime) -> None:
        doctor, patient = a_doctor(), a_patient()
        slot = a_slot(doctor, starts_at)
        effect_of(sent_by(patient), Book(slot.id), a_schedule([doctor], [patient], [slot]))

    def test_the_window_is_judged_when_the_command_was_received_not_when_it_is_decided(self) -> None:
        doctor, patient = a_doctor(), a_patient()
        slot = a_slot(doctor, NOW + 2 * HOUR)
        late = a_schedule([doctor], [patient], [slot], now=NOW + HOUR)
        effect_of(sent_by(patient, at=NOW), Book(slot.id), late)

    @pytest.mark.parametrize("status", [SlotStatus.WITHDRAWN, SlotStatus.DROPPED])
    def test_a_slot_that_is_no_longer_there_is_not_found(self, status: SlotStatus) -> None:
        doctor, patient = a_doctor(), a_patient()
        slot = a_slot(doctor, status=status)
        assert rejection_of(sent_by(patient), Book(slot.id), a_schedule([doctor], [patient], [slot])) == "slot_not_found"

    @pytest.mark.parametrize("state", [{"verified": False}, {"verified": False, "suspended": True}])
    def test_nobody_books_an_unverified_or_suspended_doctor(self, state: dict[str, bool]) -> None:
        doctor, patient = a_doctor(**state), a_patient()
        slot = a_slot(doctor)
        assert rejection_of(sent_by(patient), Book(slot.id), a_schedule([doctor], [patient], [slot])) == "doctor_not_bookable"

    def test_another_price_than_was_shown_is_told(self) -> None:
        doctor, patient = a_doctor(price=30000), a_patient()
        slot = a_slot(doctor)
        schedule = a_schedule([doctor], [patient], [slot])
        assert rejection_of(sent_by(patient), Book(slot.id, price=25000), schedule) == "price_changed"

    def test_a_patient_can_not_be_in_two_places_at_once(self) -> None:
        one, other, patient = a_doctor(), a_doctor(), a_patient()
        taken, wanted = a_slot(one), a_slot(other, NOW + 24 * HOUR + 15 * MINUTE)
        schedule = a_schedule([one, other], [patient], [taken, wanted])
        effect_of(sent_by(patient), Book(taken.id), schedule)
        assert rejection_of(sent_by(patient), Book(wanted.id), schedule) == "patient_busy"

    def test_one_appointment_may_begin_as_another_ends(self) -> None:
        one, other, patient = a_doctor(), a_doctor(), a_patient()
        first, next_one = a_slot(one), a_slot(other, NOW + 24 * HOUR + 30 * MINUTE)
        schedule = a_schedule([one, other], [patient], [first, next_one])
        effect_of(sent_by(patient), Book(first.id), schedule)
        effect_of(sent_by(patient), Book(next_one.id), schedule)

    def test_open_requests_are_capped_per_patient_and_per_doctor(self) -> None:
        doctors, patient = [a_doctor() for _ in range(3)], a_patient()
        slots = [a_slot(doctors[n % 3], NOW + (24 + n) * HOUR) for n in range(8)]
        schedule = a_schedule(doctors, [patient], slots, limits=Limits(max_open_requests=5, max_open_requests_per_doctor=2))
        for slot in slots[:5]:
            effect_of(sent_by(patient), Book(slot.id), schedule)
        assert rejection_of(sent_by(patient), Book(slots[5].id), schedule) == "too_many_open_requests"
        fewer = a_schedule(doctors, [patient], slots, limits=Limits(max_open_requests=5, max_open_requests_per_doctor=1))
        effect_of(sent_by(patient), Book(slots[0].id), fewer)
        assert rejection_of(sent_by(patient), Book(slots[3].id), fewer) == "too_many_open_requests"

    def test_a_closing_account_books_nothing(self) -> None:
        doctor, patient = a_doctor(), replace(a_patient(), closing=True)
        slot = a_slot(doctor)
        assert rejection_of(sent_by(patient), Book(slot.id), a_schedule([doctor], [patient], [slot])) == "account_closed"


class Asked:
    """A doctor, a patient, and a request of the patient for a slot of the doctor's."""

    def __init__(self, status: str = "requested", **values: object) -> None:
        self.doctor, self.patient = a_doctor(), a_patient()
        self.slot = a_slot(self.doctor, status=SlotStatus.BOOKED)
        self.appointment = an_appointment(self.slot, self.patient, status, **values)
        self.schedule = self.with_slots()

    def with_slots(self, *more: Slot, limits: Limits | None = None, now: datetime = NOW) -> Schedule:
        return a_schedule([self.doctor], [self.patient], [self.slot, *more], [self.appointment], limits=limits, now=now)


class TestDecidingRequests:
    def test_an_accepted_request_is_told_to_both_and_reminded_of(self) -> None:
        it = Asked()
        effect = effect_of(sent_by(it.doctor), Accept(it.appointment.id, "https://sala.example/1"), it.schedule)
        (appointment,) = effect.appointments
        assert (appointment.status, appointment.decided_at) == (S.ACCEPTED, NOW)
        assert appointment.texts.join_url == "https://sala.example/1"
        told = [(each.kind, each.person_id, each.due_at) for each in effect.notices]
        both = (it.patient.id, it.doctor.id)
        assert told[:2] == [("accepted", person, NOW) for person in both]
        # the reminder of a day before is due right now: too late, so it is not made
        assert told[2:] == [("reminder", person, it.slot.during.starts_at - HOUR) for person in both]

    def test_a_refused_request_frees_its_slot_and_says_why(self) -> None:
        it = Asked()
        effect = effect_of(sent_by(it.doctor), Refuse(it.appointment.id, "Férias", "unavailable"), it.schedule)
        assert effect.appointments[0].status is S.REFUSED
        assert effect.appointments[0].refusal_kind == "unavailable"
        assert effect.transitions[0].reason == "Férias"
        assert it.schedule.slots[it.slot.id].status is SlotStatus.OPEN
        assert [(each.kind, each.person_id) for each in effect.notices] == [("refused", it.patient.id)]

    @pytest.mark.parametrize(("reschedules", "sequence"), [(0, 0), (2, 3)])
    def test_a_moved_request_that_is_refused_or_lapses_leaves_calendars_by_a_higher_sequence(
        self, reschedules: int, sequence: int
    ) -> None:
        for lapses in (False, True):
            it = Asked(expires_at=NOW, reschedules=reschedules, sequence=reschedules)
            if lapses:
                effect = effect_of(sent_by_time(it.doctor), Expire(it.appointment.id, NOW), it.schedule)
            else:
                effect = effect_of(sent_by(it.doctor, NOW - MINUTE), Refuse(it.appointment.id, "Férias"), it.schedule)
            assert {each.sequence for each in (*effect.appointments, *effect.notices)} == {sequence}
            told = {it.patient.id, it.doctor.id} if lapses or reschedules else {it.patient.id}
            assert {each.person_id for each in effect.notices} == told

    def test_a_freed_slot_can_be_booked_again(self) -> None:
        it = Asked()
        effect_of(sent_by(it.doctor), Refuse(it.appointment.id, "Férias"), it.schedule)
        effect_of(sent_by(it.patient), Book(it.slot.id), it.schedule)

    @pytest.mark.parametrize("command", [Accept, Refuse])
    def test_a_lapsed_request_is_no_longer_the_doctors_to_decide(self, command: type[Accept] | type[Refuse]) -> None:
        it = Asked(expires_at=NOW)
        ask = command(it.appointment.id, "https://sala.example/1" if command is Accept else "Férias")
        assert rejection_of(sent_by(it.doctor, NOW), ask, it.schedule) == "invalid_transition"
        effect_of(sent_by(it.doctor, NOW - MINUTE), ask, it.schedule)

    def test_another_doctor_decides_nothing_here(self) -> None:
        it = Asked()
        stranger = a_doctor()
        for command in (Accept(it.appointment.id), Refuse(it.appointment.id, "não"), Cancel(it.appointment.id, "não")):
            assert rejection_of(sent_by(stranger), command, it.schedule) == "invalid_transition"


class TestCancelling:
    @pytest.mark.parametrize("status", ["requested", "accepted"])
    @pytest.mark.parametrize("by", ["patient", "doctor"])
    def test_either_side_cancels_with_a_reason_and_the_calendar_moves_on(self, status: str, by: str) -> None:
        it = Asked(status)
        effect = effect_of(sent_by(getattr(it, by)), Cancel(it.appointment.id, "Imprevisto"), it.schedule)
        assert effect.appointments[0].status is S.CANCELLED
        assert effect.appointments[0].sequence == 1
        assert effect.transitions[0].by == by
        assert it.schedule.slots[it.slot.id].status is SlotStatus.OPEN

    def test_a_patient_cancels_until_the_notice_a_doctor_until_the_start(self) -> None:
        it = Asked("accepted")
        starts_at, limits = it.slot.during.starts_at, Limits(cancel_notice=7200)
        cancel = Cancel(it.appointment.id, "Imprevisto")
        schedule = it.with_slots(limits=limits)
        assert rejection_of(sent_by(it.patient, starts_at - 2 * HOUR), cancel, schedule) == "too_late_to_cancel"
        assert rejection_of(sent_by(it.doctor, starts_at), cancel, schedule) == "too_late_to_cancel"
        assert isinstance(decide(sent_by(it.patient, starts_at - 2 * HOUR - MINUTE), cancel, schedule), Effect)
        assert isinstance(decide(sent_by(it.doctor, starts_at - MINUTE), cancel, schedule), Effect)

    def test_a_slot_that_has_begun_by_the_decision_is_not_open_again(self) -> None:
        it = Asked("accepted")
        begun = it.with_slots(now=it.slot.during.starts_at + MINUTE)
        effect_of(sent_by(it.patient, it.slot.during.starts_at - MINUTE), Cancel(it.appointment.id, "Imprevisto"), begun)
        assert begun.slots[it.slot.id].status is SlotStatus.DROPPED


class TestRescheduling:
    def test_it_keeps_its_id_and_asks_again_at_the_new_slots_price(self) -> None:
        it = Asked("accepted", decided_at=NOW)
        new = a_slot(it.doctor, NOW + 48 * HOUR, price=30000)
        schedule = it.with_slots(new)
        effect = effect_of(sent_by(it.patient), Reschedule(it.appointment.id, new.id, "Viagem", 30000), schedule)
        (moved,) = effect.appointments
        assert (moved.id, moved.status, moved.slot_id, moved.during) == (it.appointment.id, S.REQUESTED, new.id, new.during)
        assert (moved.price, moved.reschedules, moved.sequence, moved.decided_at) == (30000, 1, 1, None)
        assert moved.expires_at == expires_at(NOW, new.during.starts_at, schedule.limits)
        assert schedule.slots[it.slot.id].status is SlotStatus.OPEN
        assert schedule.slots[new.id].status is SlotStatus.BOOKED

    def test_a_taken_slot_changes_nothing(self) -> None:
        it = Asked()
        taken = a_slot(it.doctor, NOW + 48 * HOUR, status=SlotStatus.BOOKED)
        assert rejection_of(sent_by(it.patient), Reschedule(it.appointment.id, taken.id), it.with_slots(taken)) == "slot_taken"

    def test_its_own_time_does_not_make_the_patient_busy(self) -> None:
        it = Asked()
        later = a_slot(it.doctor, it.slot.during.ends_at)
        patient_busy_there = replace(later, during=Interval(it.slot.during.starts_at + 15 * MINUTE, later.during.ends_at))
        effect_of(sent_by(it.patient), Reschedule(it.appointment.id, patient_busy_there.id), it.with_slots(patient_busy_there))

    def test_three_times_is_enough(self) -> None:
        it = Asked(reschedules=3)
        new = a_slot(it.doctor, NOW + 48 * HOUR)
        assert (
            rejection_of(sent_by(it.patient), Reschedule(it.appointment.id, new.id), it.with_slots(new)) == "too_many_reschedules"
        )

    def test_another_doctors_slot_is_not_found(self) -> None:
        it = Asked()
        elsewhere = a_doctor()
        new = a_slot(elsewhere, NOW + 48 * HOUR)
        schedule = a_schedule([it.doctor, elsewhere], [it.patient], [it.slot, new], [it.appointment])
        assert rejection_of(sent_by(it.patient), Reschedule(it.appointment.id, new.id), schedule) == "slot_not_found"

    def test_two_appointments_may_swap_by_way_of_a_third_slot(self) -> None:
        doctor, one, other = a_doctor(), a_patient(), a_patient()
        slots = [a_slot(doctor, NOW + hours * HOUR) for hours in (24, 48, 72)]
        schedule = a_schedule([doctor], [one, other], slots)
        first = effect_of(sent_by(one), Book(slots[0].id), schedule).appointments[0]
        second = effect_of(sent_by(other), Book(slots[1].id), schedule).appointments[0]
        for patient, appointment, slot in ((one, first, slots[2]), (other, second, slots[0]), (one, first, slots[1])):
            effect_of(sent_by(patient), Reschedule(appointment.id, slot.id), schedule)
        assert schedule.appointments[first.id].slot_id == slots[1].id
        assert schedule.appointments[second.id].slot_id == slots[0].id
        assert schedule.slots[slots[2].id].status is SlotStatus.OPEN


class TestTheEnd:
    @pytest.mark.parametrize(("command", "status"), [(Complete, S.COMPLETED), (NoShow, S.NO_SHOW)])
    def test_the_doctor_closes_what_was_accepted_once_it_has_begun(self, command: type[Complete], status: S) -> None:
        it = Asked("accepted")
        starts_at = it.slot.during.starts_at
        assert (
            rejection_of(sent_by(it.doctor, starts_at - MINUTE), command(it.appointment.id), it.schedule) == "invalid_transition"
        )
        effect = effect_of(sent_by(it.doctor, starts_at), command(it.appointment.id), it.schedule)
        assert effect.appointments[0].status is status
        assert it.schedule.slots[it.slot.id].status is SlotStatus.BOOKED

    def test_a_request_lapses_at_its_deadline_and_both_are_told(self) -> None:
        it = Asked(expires_at=NOW)
        effect = effect_of(sent_by_time(it.doctor), Expire(it.appointment.id, NOW), it.schedule)
        assert effect.appointments[0].status is S.EXPIRED
        assert effect.transitions[0].by == "system"
        assert {each.person_id for each in effect.notices} == {it.patient.id, it.doctor.id}
        assert it.schedule.slots[it.slot.id].status is SlotStatus.OPEN

    def test_a_deadline_that_was_moved_lapses_nothing(self) -> None:
        it = Asked(expires_at=NOW + HOUR)
        assert rejection_of(sent_by_time(it.doctor), Expire(it.appointment.id, NOW), it.schedule) == "invalid_transition"

    @pytest.mark.parametrize(("starts_in", "expected"), [(48 * HOUR, 24 * HOUR), (10 * HOUR, 9 * HOUR), (25 * HOUR, 24 * HOUR)])
    def test_the_deadline_is_a_day_or_an_hour_before_the_start(self, starts_in: timedelta, expected: timedelta) -> None:
        assert expires_at(NOW, NOW + starts_in, Limits()) == NOW + expected


MONDAY_TO_FRIDAY = Availability(tuple(Rule(day, time(9), time(12), 30) for day in range(1, 6)))


class TestTheAgenda:
    def test_putting_the_availability_makes_slots_to_the_horizon(self) -> None:
        doctor = a_doctor()
        schedule = a_schedule([doctor])
        effect = effect_of(sent_by(doctor), SetAvailability(MONDAY_TO_FRIDAY), schedule)
        assert effect.result is not None
        assert effect.result["slots_open"] == len(effect.slots) > 200
        assert effect.result["appointments_outside"] == []

    def test_an_edit_keeps_what_is_booked_and_says_what_lies_outside(self) -> None:
        it = Asked("accepted")
        effect = effect_of(sent_by(it.doctor), SetAvailability(MONDAY_TO_FRIDAY), it.schedule)
        assert not any(slot.during.overlaps(it.slot.during) for slot in effect.slots if slot.id != it.slot.id)
        nothing = effect_of(sent_by(it.doctor), SetAvailability(Availability()), it.schedule)
        assert nothing.result is not None
        assert nothing.result["appointments_outside"] == [str(it.appointment.id)]
        assert it.schedule.slots[it.slot.id].status is SlotStatus.BOOKED
        effect_of(sent_by(it.patient), Cancel(it.appointment.id, "Imprevisto"), it.schedule)
        assert it.schedule.slots[it.slot.id].status is SlotStatus.DROPPED

    def test_the_horizon_moves_with_the_days(self) -> None:
        doctor = a_doctor()
        schedule = a_schedule([doctor])
        effect_of(sent_by(doctor), SetAvailability(MONDAY_TO_FRIDAY), schedule)
        before = len(schedule.slots)
        schedule.now += timedelta(days=3)  # the days before bring a weekend within reach
        effect = effect_of(sent_by_time(doctor, schedule.now), ExtendHorizon(schedule.now.date()), schedule)
        assert len(schedule.slots) == before + len(effect.slots)
        assert min(slot.during.starts_at for slot in effect.slots) > NOW + timedelta(days=60)

    def test_an_extra_slot_overlaps_nothing_and_survives_an_edit(self) -> None:
        doctor = a_doctor()
        schedule = a_schedule([doctor])
        during = Interval(NOW + 30 * HOUR, NOW + 31 * HOUR)
        effect = effect_of(sent_by(doctor), AddSlot(during, 5000), schedule)
        assert rejection_of(sent_by(doctor), AddSlot(during), schedule) == "slot_overlaps"
        effect_of(sent_by(doctor), SetAvailability(Availability()), schedule)
        assert schedule.slots[effect.slots[0].id].status is SlotStatus.OPEN
        past = AddSlot(Interval(NOW - HOUR, NOW + HOUR))
        assert rejection_of(sent_by(doctor), past, schedule) == "slot_in_past"

    def test_a_withdrawn_slot_is_not_made_again_nor_is_one_that_was_moved_away(self) -> None:
        doctor = a_doctor()
        schedule = a_schedule([doctor])
        first, second, *_ = sorted(
            effect_of(sent_by(doctor), SetAvailability(MONDAY_TO_FRIDAY), schedule).slots, key=lambda slot: slot.during
        )
        effect_of(sent_by(doctor), WithdrawSlot(first.id), schedule)
        moved_to = Interval(second.during.starts_at + 12 * HOUR, second.during.ends_at + 12 * HOUR)
        effect_of(sent_by(doctor), ChangeSlot(second.id, moved_to.starts_at, moved_to.ends_at, 100), schedule)
        assert effect_of(sent_by(doctor), SetAvailability(MONDAY_TO_FRIDAY), schedule).slots == ()
        assert (schedule.slots[second.id].during, schedule.slots[second.id].price) == (moved_to, 100)

    def test_only_open_slots_to_come_are_changed_or_withdrawn(self) -> None:
        it = Asked()
        begun = a_slot(it.doctor, NOW)
        free, neighbour = a_slot(it.doctor, NOW + 50 * HOUR), a_slot(it.doctor, NOW + 51 * HOUR)
        schedule = it.with_slots(begun, free, neighbour)
        assert rejection_of(sent_by(it.doctor), WithdrawSlot(it.slot.id), schedule) == "slot_not_open"
        assert rejection_of(sent_by(it.doctor), ChangeSlot(it.slot.id, price=1), schedule) == "slot_not_open"
        assert rejection_of(sent_by(it.doctor), WithdrawSlot(begun.id), schedule) == "slot_in_past"
        assert rejection_of(sent_by(it.doctor), ChangeSlot(free.id, NOW), schedule) == "slot_in_past"
        too_long = ChangeSlot(free.id, ends_at=NOW + 52 * HOUR)
        assert rejection_of(sent_by(it.doctor), too_long, schedule) == "slot_overlaps"
        assert rejection_of(sent_by(a_doctor()), WithdrawSlot(free.id), schedule) == "slot_not_open"


ALLOWED = {
    S.REQUESTED: {S.ACCEPTED, S.REFUSED, S.CANCELLED, S.EXPIRED, S.REQUESTED},
    S.ACCEPTED: {S.CANCELLED, S.COMPLETED, S.NO_SHOW, S.REQUESTED},
}


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_whatever_is_asked_in_whatever_order_the_promises_hold(data: st.DataObject) -> None:
    doctors, patients = [a_doctor() for _ in range(2)], [a_patient() for _ in range(3)]
    slots = [a_slot(doctor, NOW + (3 + n) * HOUR, 60, held=n % 3 != 0) for doctor in doctors for n in range(5)]
    schedule = a_schedule(doctors, patients, slots, limits=Limits(max_open_requests=4))
    for _ in range(data.draw(st.integers(1, 40))):
        schedule.now += data.draw(st.sampled_from([timedelta(), 10 * MINUTE, 2 * HOUR]))
        before = dict(schedule.appointments)
        envelope, command = data.draw(asks(schedule))
        decision = decide(envelope, command, schedule)
        if isinstance(decision, Rejection):
            assert decision.code in REJECTIONS
            continue
        schedule.apply(decision)
        for step in decision.transitions:
            was = before.get(step.appointment_id)
            assert step.status is S.REQUESTED if was is None else step.status in ALLOWED[was.status]
        assert_consistent(schedule)


@st.composite
def asks(draw: st.DrawFn, schedule: Schedule) -> tuple[Envelope, Command]:
    doctor, patient = draw(st.sampled_from([*schedule.doctors.values()])), draw(st.sampled_from([*schedule.patients.values()]))
    slot = draw(st.sampled_from([*schedule.slots.values()]))
    by_doctor, by_patient, by_time = (
        sent_by(doctor, schedule.now),
        sent_by(patient, schedule.now),
        sent_by_time(doctor, schedule.now),
    )
    choices: list[tuple[Envelope, Command]] = [
        (by_patient, Book(slot.id)),
        (by_patient, Book(slot.id)),
        (by_doctor, WithdrawSlot(slot.id)),
        (by_doctor, AddSlot(Interval(slot.during.ends_at, slot.during.ends_at + HOUR))),
        (by_doctor, ChangeSlot(slot.id, slot.during.starts_at + 15 * MINUTE)),
        (by_doctor, SetAvailability(draw(st.sampled_from([Availability(), MONDAY_TO_FRIDAY])))),
    ]
    if schedule.appointments:
        each = draw(st.sampled_from([*schedule.appointments.values()]))
        choices += [
            (by_doctor, Accept(each.id)),
            (by_doctor, Refuse(each.id, "não")),
            (by_doctor, Cancel(each.id, "não")),
            (by_patient, Cancel(each.id, "não")),
            (by_patient, Reschedule(each.id, slot.id)),
            (by_doctor, Complete(each.id)),
            (by_doctor, NoShow(each.id)),
            (by_time, Expire(each.id, each.expires_at)),
        ]
    return draw(st.sampled_from(choices))


def assert_consistent(schedule: Schedule) -> None:
    active = [each for each in schedule.appointments.values() if each.status.active]
    assert len({each.slot_id for each in active}) == len(active)
    for person in ("patient_id", "doctor_id"):
        for one in active:
            for other in active:
                if one.id < other.id and getattr(one, person) == getattr(other, person):
                    assert not one.during.overlaps(other.during)
    held = {each.slot_id for each in active}
    for slot in schedule.slots.values():
        assert (slot.id in held) == (slot.status is SlotStatus.BOOKED)
    for doctor in schedule.doctors.values():
        taken = sorted(slot.during for slot in schedule.slots_of(doctor.id) if slot.occupies)
        assert all(one.ends_at <= other.starts_at for one, other in pairwise(taken))
