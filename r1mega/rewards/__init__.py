"""Rewards: answer extraction and comparison, and the pool of killable processes that runs reward plugins."""
