"""The profiles that a person means, by id, by name or by precision, and what to say of names that fit none. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from serving.choice.select import Decision, rank
from serving.contract.profile import Precision, Profile
from serving.errors import NoProfile, WantedProfileError

MIN_PREFIX = 8  # hex digits of an id that a person may abbreviate to


def candidates(decisions: Sequence[Decision], wanted: str | None) -> list[Profile]:
    """The profiles to try, in order: only the wanted one if a person named it, else all that may run, best first.

    Raises WantedProfileError where the wanted one is unknown, ambiguous or refused; NoProfile where nothing may run.
    """
    if wanted is not None:
        profile = choose([d.profile for d in decisions], wanted)
        why = next(d.refusal for d in decisions if d.profile == profile)
        if why is not None:
            raise WantedProfileError(
                f"NIM_MODEL_PROFILE={wanted!r} is {profile.id} ({profile.name}), which cannot run here: {why}.\n"
                "Unset it to let the server choose, or see list-model-profiles."
            )
        return [profile]
    ranked = rank(decisions)
    if not ranked:
        raise NoProfile([f"{d.profile.id} ({d.profile.name}): {d.refusal}" for d in decisions])
    return ranked


def by_precision(ranked: Sequence[Profile], precision: Precision | None) -> list[Profile]:
    """The same, those of the wanted precision first."""
    return sorted(ranked, key=lambda profile: precision is not None and profile.precision is not precision)


def choose(profiles: Sequence[Profile], wanted: str) -> Profile:
    """The profile that a person means, by id, by name, or by a unique prefix of an id; raises WantedProfileError."""
    matches = _matches(profiles, wanted)
    if len(matches) == 1:
        return matches[0]
    lines = [_why_not(wanted, matches)]
    if not matches:
        near = _near(profiles, [wanted]) | {profile.id for profile in profiles if profile.id.startswith(wanted)}
        lines += ["All valid profiles:", *_listed(profiles, near)]
    raise WantedProfileError("\n".join(lines))


def choose_all(profiles: Sequence[Profile], names: Sequence[str]) -> list[Profile]:
    """The profiles of several names, each once; raises WantedProfileError for all names that fit none or several.

    It begins with NIM's words, by which people search; then it says which name is wrong and what it may have meant.
    """
    matches = {name: _matches(profiles, name) for name in names}
    unknown = {name: _why_not(name, fitting) for name, fitting in matches.items() if len(fitting) != 1}
    if unknown:
        lines = [
            "Not all of the provided profiles are supported.",
            f"Unknown profiles provided: {_set_text(unknown)}",
            f"All valid profiles: {_set_text(profile.id for profile in profiles)}",
            *unknown.values(),
            "The same with their names:",
            *_listed(profiles, _near(profiles, unknown)),
        ]
        raise WantedProfileError("\n".join(lines))
    return list({profile.id: profile for (profile,) in matches.values()}.values())


def _matches(profiles: Sequence[Profile], wanted: str) -> list[Profile]:
    exact = [profile for profile in profiles if wanted in (profile.id, profile.name)]
    return exact or [p for p in profiles if len(wanted) >= MIN_PREFIX and p.id.startswith(wanted)]


def _why_not(wanted: str, matches: Sequence[Profile]) -> str:
    """Why a name that does not fit just one profile cannot be used."""
    if matches:
        return "\n".join([f"Profile {wanted!r} is ambiguous; write more of the id:", *_listed(matches, set())])
    short = f" A prefix of an id needs at least {MIN_PREFIX} digits." if len(wanted) < MIN_PREFIX else ""
    return f"No matching profile_id or profile description is found in manifest for {wanted!r}.{short}"


def _near(profiles: Sequence[Profile], names: Iterable[str]) -> set[str]:
    """The ids of profiles that names may have meant."""
    ids = {text: profile.id for profile in profiles for text in (profile.name, profile.id)}
    return {ids[text] for name in names for text in get_close_matches(name, ids, n=3)}


def _listed(profiles: Sequence[Profile], near: set[str]) -> list[str]:
    return [f"  {p.id} ({p.name})" + ("  <- did you mean this?" if p.id in near else "") for p in profiles]


def _set_text(texts: Iterable[str]) -> str:
    return "{" + ", ".join(repr(text) for text in texts) + "}"
