"""Small files in SQuAD's JSON."""

import json


def squad_json(*paragraphs: tuple[str, list[tuple[str, str, list[tuple[str, int]]]]]) -> str:
    """Returns an article of paragraphs: context, then id, question, answers of each question."""
    return json.dumps(
        {
            "version": "1.1",
            "data": [
                {
                    "title": "t",
                    "paragraphs": [
                        {
                            "context": context,
                            "qas": [
                                {
                                    "id": key,
                                    "question": question,
                                    "answers": [
                                        {"text": text, "answer_start": start}
                                        for text, start in answers
                                    ],
                                }
                                for key, question, answers in questions
                            ],
                        }
                        for context, questions in paragraphs
                    ],
                }
            ],
        },
        ensure_ascii=False,
    )
