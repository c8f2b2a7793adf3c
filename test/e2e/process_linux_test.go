package e2e

import "syscall"

// dieWithUs makes the kernel kill a child when the thread that forked it ends.
func dieWithUs() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
