"""What `make lab` sets: a notebook that is opened, run or not, counts as changed only if it is.

JupyterLab writes into a notebook which kernel it runs on, down to the version of Python. Here it
finds that written when it opens one, and nbdev takes it out again when it is saved.
"""

from ipykernel.ipkernel import IPythonKernel
from jupyter_server.services.contents.largefilemanager import AsyncLargeFileManager


class Notebooks(AsyncLargeFileManager):
    "Files, and notebooks as JupyterLab leaves them."

    async def get(self, path, content=True, **options):
        model = await super().get(path, content, **options)
        if content and model["type"] == "notebook":
            metadata = model["content"]["metadata"]
            spec = self.parent.kernel_spec_manager.get_kernel_spec("python3")
            if metadata.get("kernelspec", {}).get("name") == "python3":
                metadata["kernelspec"] |= {
                    "display_name": spec.display_name,
                    "language": spec.language,
                }
                metadata["language_info"] = IPythonKernel.language_info
        return model


c = get_config()  # noqa: F821 (Jupyter's)
c.ServerApp.contents_manager_class = Notebooks
c.ContentsManager.pre_save_hook = "nbdev.clean.clean_jupyter"
