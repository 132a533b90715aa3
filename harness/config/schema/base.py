"""What all sections share (`harness.section`), for the modules beside this one."""

from harness.section import Place, PositiveInt, Seconds, Section, Share, execution, science, since

__all__ = ["Place", "PositiveInt", "Seconds", "Section", "Share", "execution", "science", "since"]
