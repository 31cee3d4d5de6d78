package main

type quiesceArgs struct {
	named
	On bool `json:"on"`
}

// quiesce answers the request of that name: nothing more is read from processes and files and nothing sent until it is turned off, or until the next hello.
func quiesce(_ *link, args *quiesceArgs) (any, error) {
	for _, l := range links {
		for _, c := range l.openChannels() {
			for _, o := range c.out {
				if o != nil {
					o.quiesce(args.On)
				}
			}
		}
	}
	return nil, nil
}
