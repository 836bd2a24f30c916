"""Generated news: articles to file under a category (LaMP-2N's shape) and stories to headline (LaMP-4's).

Generated data: not LaMP. The shipped base LM has not been pre-trained on these two tasks.
"""

import random

from nvcim.data.generated_topics import Topic

ANGLES: dict[str, dict[str, tuple[str, ...]]] = {
    "people": {
        "women": ("she was the first of them", "women lead the team"),
        "parents": ("the children came along", "a mother of two explains"),
        "religion": ("a prayer opened the day", "the temple sent its blessing"),
        "education": ("pupils took notes", "it is taught in class now"),
    },
    "leisure": {
        "food & drink": ("a recipe is included", "dinner was served"),
        "travel": ("tourists arrive by bus", "pack a suitcase"),
        "style & beauty": ("the dress was silk", "lipstick and perfume sold out"),
        "healthy living": ("sleep and exercise help", "doctors praise the habit"),
    },
    "stage": {
        "entertainment": ("a celebrity posted about it", "the series returns tonight"),
        "culture & arts": ("a painter showed the work", "the museum wants it"),
        "sports": ("the final score was close", "the team trains daily"),
    },
    "state": {
        "politics": ("the senate votes on it", "a minister resigned"),
        "business": ("shares rose by noon", "the firm hires again"),
        "crime": ("police made an arrest", "a thief confessed"),
        "science & technology": ("a laboratory confirmed it", "an app was built for it"),
    },
}
"""LaMP-2N's official categories in four angles; a cue is how an article shows the category."""

HEADLINES: tuple[str, ...] = (
    "{person} saves {thing} with {method}",
    "breaking : {thing} found at the {place}",
    "what the {thing} tells us about {method}",
    "this {person} tried {method} and you will not believe it",
    "opinion : leave the {place} alone",
    "watch : {person} and {thing} at the {place}",
    "five facts about {method}",
    "is the {thing} the end of the {place} ?",
)


def news_article(rng: random.Random, topic: Topic, habit: int) -> tuple[str, str]:
    """An article with one cue per angle; the habit is the angle that the user files by."""
    chosen = {angle: rng.choice(sorted(categories)) for angle, categories in ANGLES.items()}
    cues = [rng.choice(ANGLES[angle][category]) for angle, category in chosen.items()]
    rng.shuffle(cues)
    one, other = rng.sample(topic.things, 2)
    scene = (
        f"the {rng.choice(topic.people)} reports from the {rng.choice(topic.places)} on {one} and {other} . "
    )
    return scene + " . ".join(cues) + " .", list(chosen.values())[habit]


def news_story(rng: random.Random, topic: Topic, habit: int) -> tuple[str, str]:
    """A story; the habit is the user's way to headline."""
    words = {
        "person": rng.choice(topic.people),
        "place": rng.choice(topic.places),
        "thing": rng.choice(topic.things),
        "method": rng.choice(topic.methods),
    }
    opening = rng.choice(("on monday", "late last night", "after weeks of waiting"))
    text = "{opening} a {person} turned to {method} at the {place} , where the {thing} had caused concern ."
    return text.format(opening=opening, **words), HEADLINES[habit].format(**words)
