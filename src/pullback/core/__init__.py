"""What every family uses: argument checks, errors, autograd helpers, numerics. Small on purpose."""
