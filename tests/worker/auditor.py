"""A script as Auditor: reads the pending patch that is applied in the work tree."""

import subprocess
import sys

patch = subprocess.run(["git", "diff", "HEAD"], capture_output=True, text=True, check=True).stdout
is_tested = "+    def test_" in patch
sys.stdout.write(f"The new contract is {'' if is_tested else 'not '}tested.\n")
sys.stdout.write(f"RECOMMENDATION: {'approve' if is_tested else 'revise'}\n")
