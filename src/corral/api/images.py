"""/v1/images: what sandboxes can be made from."""

from __future__ import annotations

from corral.api.route import Actor, Services, may, router
from corral.control.roles import Permission
from corral.schema.observe import Image, Images

routes = router("images")


@routes.get("/v1/images", response_model=Images)
@may(Permission.LOOK)
async def listing(services: Services, actor: Actor) -> Images:  # noqa: ARG001 - a key is needed
    """Images on the node, newest first."""
    return Images(
        images=[
            Image(
                id=image.spec.id,
                name=image.spec.name,
                created_at=image.created,
                size=image.size,
                user=image.spec.user,
                workdir=image.spec.workdir,
                env=dict(image.spec.env),
                command=None if image.spec.command is None else list(image.spec.command),
            )
            for image in services.node.images()
        ]
    )
