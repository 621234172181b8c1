"""Which models a project may use, as OpenAI's SDK sets it: only some, or all but some.

They bind every key of the project, beside what a key may use itself. A model is meant under each of its names.
"""

from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from meterhouse.admin.guard import Mandated
from meterhouse.admin.schemas import Strict
from meterhouse.db.organizations import Project
from meterhouse.errors import Malformed, NotFound
from meterhouse.keys.owners import MOST_MODELS
from meterhouse.keys.service import KeyService
from meterhouse.providers.routes import Routes, is_model_name

Mode = Literal["allow_list", "deny_list"]


class ModelPermissionsRequest(Strict):
    """A new list, in place of the one that there is."""

    model_config = ConfigDict(protected_namespaces=())

    mode: Mode
    model_ids: Annotated[list[str], Field(max_length=MOST_MODELS)]


class ModelPermissionsObject(BaseModel):
    """What a project may use; a project without a list has an empty deny list: it may use every model."""

    model_config = ConfigDict(protected_namespaces=())

    object: Literal["project.model_permissions"] = "project.model_permissions"
    mode: Mode
    model_ids: list[str]

    @classmethod
    def of(cls, project: Project) -> "ModelPermissionsObject":
        """Show what a project may use."""
        mode: Mode = "allow_list" if project.model_mode == "allow_list" else "deny_list"
        return cls(mode=mode, model_ids=list(project.model_ids))


class DeletedModelPermissionsObject(BaseModel):
    """A list that was removed: the project may use every model."""

    object: Literal["project.model_permissions.deleted"] = "project.model_permissions.deleted"
    deleted: Literal[True] = True


def add_model_permissions(router: APIRouter, service: KeyService, routes: Routes) -> None:
    """Add the routes."""
    path = "/projects/{project_id}/model_permissions"

    @router.get(path, summary="Which models a project may use")
    async def get_model_permissions(project_id: str, mandate: Mandated) -> ModelPermissionsObject:
        return ModelPermissionsObject.of(await service.get_project(project_id, within=mandate.organization_id))

    @router.post(path, summary="Say which models a project may use")
    async def set_model_permissions(
        project_id: str, body: ModelPermissionsRequest, mandate: Mandated
    ) -> ModelPermissionsObject:
        await service.get_project(project_id, within=mandate.organization_id)
        for index, name in enumerate(body.model_ids):
            if not is_model_name(name):
                raise Malformed("This cannot be the name of a model.", param=f"model_ids[{index}]")
        names = [routes.snapshot.listed_name(name) for name in body.model_ids]
        return ModelPermissionsObject.of(await service.set_models(project_id, body.mode, names, author=mandate.author))

    @router.delete(path, summary="Let a project use every model")
    async def remove_model_permissions(project_id: str, mandate: Mandated) -> DeletedModelPermissionsObject:
        project = await service.get_project(project_id, within=mandate.organization_id)
        if project.model_mode is None:
            raise NotFound("This project has no model permissions: it may use every model.", param="project_id")
        await service.set_models(project_id, None, (), author=mandate.author)
        return DeletedModelPermissionsObject()
