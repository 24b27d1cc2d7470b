"""Small files in SQuAD's JSON format."""

import json


def squad_json(*paragraphs: tuple[str, list[tuple[str, str, list[tuple[str, int]]]]]) -> str:
    """Returns SQuAD JSON of contexts, each with the id, text and answers of its questions."""
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
