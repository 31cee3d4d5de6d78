// Command runsc is gVisor's own command line, built from the pinned module.
package main

import "gvisor.dev/gvisor/runsc/cli/maincli"

func main() { maincli.Main() }
