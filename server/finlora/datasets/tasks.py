"""FinLoRA's tasks: which sources their files are made of, and under what licence. Reads nothing."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Source:
    """A public collection of rows."""

    name: str
    title: str
    licence: str
    url: str | None
    hub: str | None = None  # data set id; None: only from a local folder
    needs: str = ""  # what a local folder must hold


@dataclass(frozen=True, slots=True)
class Task:
    """One training file and one test file."""

    name: str
    file_stem: str
    sources: tuple[Source, ...]

    @property
    def train_file(self) -> str:
        """As FinLoRA names it."""
        suffix = "_batched" if self.name == "finer" else ""
        return f"{self.file_stem}_train{suffix}.jsonl"

    @property
    def test_file(self) -> str:
        """As FinLoRA names it."""
        suffix = "_batched" if self.name == "finer" else ""
        return f"{self.file_stem}_test{suffix}.jsonl"


def _hub(data_set: str) -> str:
    return f"https://huggingface.co/datasets/{data_set}"


FPB = Source(
    "fpb",
    "Financial PhraseBank v1.0, at least 50 % agreement",
    "CC BY-NC-SA 3.0",
    _hub("takala/financial_phrasebank"),
    "takala/financial_phrasebank",
    "Sentences_50Agree.txt, or the zip it comes in",
)
FIQA = Source(
    "fiqa",
    "FiQA 2018, task 1",
    "MIT, as its mirror says; unclear at the source",
    _hub("TheFinAI/fiqa-sentiment-classification"),
    "TheFinAI/fiqa-sentiment-classification",
    "train and test tables with the columns sentence, score, type",
)
TFNS = Source(
    "tfns",
    "Twitter Financial News Sentiment",
    "MIT",
    _hub("zeroshot/twitter-financial-news-sentiment"),
    "zeroshot/twitter-financial-news-sentiment",
    "sent_train.csv and sent_valid.csv",
)
NWGI = Source(
    "nwgi",
    "News with GPT instructions",
    "MIT",
    _hub("oliverwang15/news_with_gpt_instructions"),
    "oliverwang15/news_with_gpt_instructions",
    "train and test tables with the columns news, label",
)
HEADLINE = Source(
    "headline",
    "Gold commodity headlines, as questions",
    "CC BY-SA 3.0",
    _hub("FinGPT/fingpt-headline-cls"),
    "FinGPT/fingpt-headline-cls",
    "train and test tables with the columns instruction, input, output",
)
NER = Source(
    "ner",
    "Entities in SEC filings, as questions",
    "CC BY-SA 3.0",
    _hub("FinGPT/fingpt-ner-cls"),
    "FinGPT/fingpt-ner-cls",
    "train and test tables with the columns instruction, input, output",
)
FINER = Source(
    "finer",
    "FiNER-139",
    "CC BY-SA 4.0",
    _hub("nlpaueb/finer-139"),
    "nlpaueb/finer-139",
    "train and test tables with the columns tokens, ner_tags (names, or numbers in Parquet "
    "that carries the names)",
)
XBRL_EXTRACT = Source(
    "xbrl_extract",
    "XBRL analysis of 150 filings",
    "MIT",
    _hub("wangd12/XBRL_analysis"),
    "wangd12/XBRL_analysis",
    "train and test tables with the columns instruction, input, output, doc_path, context_id, "
    "and the filings (DowJones30/...) below the same folder",
)
XBRL_TERM = Source(
    "xbrl_term",
    "XBRL terminology of XBRL-Agent",
    "MIT",
    "https://github.com/KirkHan0920/XBRL-Agent",
    None,
    "a table (.xlsx, .csv) with the columns Term, Explanation",
)
FINANCEBENCH = Source(
    "financebench",
    "FinanceBench, open part",
    "CC BY-NC 4.0",
    _hub("PatronusAI/financebench"),
    "PatronusAI/financebench",
    "a table with the columns question, answer, evidence",
)
FORMULA = Source(
    "formula",
    "Formulas with questions of XBRL-Agent",
    "MIT",
    "https://github.com/KirkHan0920/XBRL-Agent",
    None,
    "a table (.xlsx, .csv) with the columns Formula Name, Formula, Explanation, Question 1, "
    "Answer 1, ...",
)
CFA = Source(
    "cfa",
    "Exam questions of your own",
    "your own: FinLoRA's are under copyright and not published",
    None,
    None,
    "a table with the columns question, A, B, C, (D,) answer and, if need be, context",
)

TASKS = {
    task.name: task
    for task in (
        Task("sentiment", "finlora_sentiment", (FPB, FIQA, TFNS, NWGI)),
        Task("tweets", "tweets", (TFNS,)),
        Task("headline", "headline", (HEADLINE,)),
        Task("ner", "ner", (NER,)),
        Task("finer", "finer", (FINER,)),
        Task("xbrl_extract", "xbrl_extract", (XBRL_EXTRACT,)),
        Task("xbrl_term", "xbrl_term", (XBRL_TERM,)),
        Task("financebench", "financebench", (FINANCEBENCH,)),
        Task("formula", "formula", (FORMULA,)),
        Task("cfa", "cfa", (CFA,)),
    )
}


def task_of_file(name: str) -> str | None:
    """The task whose files include one of this name."""
    for task in TASKS.values():
        if name in (task.train_file, task.test_file):
            return task.name
    return None
