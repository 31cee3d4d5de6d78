module corral.dev/agent

go 1.21
