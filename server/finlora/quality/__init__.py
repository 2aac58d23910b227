"""The experiment behind the claim: does NF4 with an adapter answer as 16 bits with one do?"""
