"""Small files in SQuAD's JSON."""

import json


def squad_json(*paragraphs: tuple[str, list[tuple[str, str, list[tuple[str, int]]]]]) -> str:
    """Returns an article of paragraphs: context, then id, question, answers of each question."""
    articles = []
    for context, questions in paragraphs:
        qas = [
            {
                "id": key,
                "question": question,
                "answers": [{"text": text, "answer_start": start} for text, start in answers],
            }
            for key, question, answers in questions
        ]
        articles.append({"context": context, "qas": qas})
    content = {"version": "1.1", "data": [{"title": "t", "paragraphs": articles}]}
    return json.dumps(content, ensure_ascii=False)
