"""One command from preference pairs to a defensible answer: PPO, GRPO or DPO?"""
