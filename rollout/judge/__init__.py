"""A judge is another model, which an environment asks to score the policy's answers.

class Essay(Environment):
    @classmethod
    @asynccontextmanager
    async def shared(cls, settings):
        async with Judge("https://judge.example/v1", "a-model", api_key=os.environ["JUDGE_KEY"]) as judge:
            yield judge

    async def run(self, task: Task, model: Model) -> Score:
        reply = await model.chat([{"role": "user", "content": "Write an essay."}])
        question = f"Reply with a number from 0 to 10:\\n{reply.text}"
        verdict = await self.shared_resources.ask(question, accept=str.isdecimal, temperature=0)
        return Score(int(verdict) / 10)
"""

from rollout.judge.client import Judge
from rollout.judge.errors import JudgeClosed, JudgeRefused

__all__ = ["Judge", "JudgeClosed", "JudgeRefused"]
